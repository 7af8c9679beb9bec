package trainerbridge

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"ctrloop/internal/artifact"
	"ctrloop/schemas/control"
	"ctrloop/trainer-bridge/runner"
)

// local returns a runner whose "Python" is a shell script: the contract is argv, files and exit status.
func local(t *testing.T, script string) (*Local, control.JobStatus) {
	t.Helper()
	dir := t.TempDir()
	py := filepath.Join(dir, "python")
	if err := os.WriteFile(py, []byte("#!/bin/sh\nspec=$3; out=$5\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	store, err := artifact.Open(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	data, err := store.PutBytes([]byte("data set"))
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := json.Marshal(Spec{Kind: KindReward, Dataset: data, Previous: data, Hyper: map[string]any{"epochs": 3}})
	return &Local{
			Inputs:    Inputs{Python: py, Dir: filepath.Join(dir, "jobs"), Threads: 1, Store: store},
			Timeout:   20 * time.Second,
			StopGrace: 5 * time.Second,
		},
		control.JobStatus{
			Job: control.Job{ID: "reward-x", Spec: raw},
		}
}

func TestLocalHandsOverTheSpec(t *testing.T) {
	l, j := local(t, `cp "$spec" "$out/seen.json"`)
	out, err := l.Run(t.Context(), j)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(out, "seen.json"))
	if err != nil {
		t.Fatal(err)
	}
	var s TrainerSpec
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	if s.Kind != KindReward || s.ID != "reward-x" || s.Dataset != l.Store.Path(s.DatasetDigest) || s.RewardModel != "" ||
		s.Previous != filepath.Join(s.Dataset, "model") ||
		s.Hyper["epochs"] != 3.0 {
		t.Errorf("spec.json: %s", b)
	}
}

func TestLocalClassifiesFailures(t *testing.T) {
	for script, want := range map[string]FailureClass{
		"echo no such file >&2; exit 2": FailInput, "exit 3": FailMemory, "exit 4": FailDiverged, "exit 5": FailInterrupted,
		"exit 6": FailEvidence,
		"exit 1": FailBug, "kill -9 $$": FailMemory,
	} {
		l, j := local(t, script)
		_, err := l.Run(t.Context(), j)
		var je *JobError
		if !errors.As(err, &je) || je.Class != want {
			t.Errorf("%q: %v, want class %s", script, err, want)
		}
		if want == FailInput && !strings.Contains(err.Error(), "no such file") {
			t.Errorf("the error does not say what the log says: %v", err)
		}
	}
}

func TestLocalRefusesAMissingArtifact(t *testing.T) {
	l, j := local(t, "exit 0")
	j.Spec = json.RawMessage(`{"kind":"reward","dataset":"` + strings.Repeat("0", 64) + `"}`)
	_, err := l.Run(t.Context(), j)
	var je *JobError
	if !errors.As(err, &je) || je.Class != FailInput || !strings.Contains(err.Error(), "not in the store") {
		t.Errorf("%v", err)
	}
}

func TestLocalStopsWithATermFirst(t *testing.T) {
	l, j := local(t, `trap 'echo saved > "$out/checkpoint"; exit 5' TERM; echo > "$out/ready"; while :; do sleep 0.05; done`)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(l.JobDir(j.ID), "out", "ready")); err == nil {
				cancel()
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	_, err := l.Run(ctx, j)
	var je *JobError
	if !errors.As(err, &je) || je.Class != FailInterrupted {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(l.JobDir(j.ID), "out", "checkpoint")); err != nil {
		t.Errorf("the job had no time for its checkpoint: %v", err)
	}
}

func TestATimeLimitGoesByProgress(t *testing.T) {
	start := time.Unix(0, 0)
	p := newProgress(10*time.Minute, start)
	for minute := 0; minute <= 600; minute += 5 { // ten hours on a machine with other things to do
		if p.stalled(start.Add(time.Duration(minute)*time.Minute), int64(minute)) {
			t.Fatalf("stopped after %d minutes, while it was making progress", minute)
		}
	}
	if p.stalled(start.Add(609*time.Minute), 600) {
		t.Error("stopped before the limit")
	}
	if !p.stalled(start.Add(610*time.Minute), 600) {
		t.Error("a job that stands still goes on")
	}
}

func TestLocalStopsAJobThatStandsStill(t *testing.T) {
	l, j := local(t, "while :; do sleep 0.05; done")
	l.Timeout = 50 * time.Millisecond
	_, err := l.Run(t.Context(), j)
	var je *JobError
	if !errors.As(err, &je) || je.Class != FailTimeout || !strings.Contains(err.Error(), "without progress") {
		t.Errorf("%v", err)
	}
}

func TestLocalHandsOverWhereModelsLie(t *testing.T) {
	l, j := local(t, `cp "$spec" "$out/seen.json"`)
	l.Placement = Placement{Device: "auto", Precision: "bf16", Quantize: "4bit", Checkpointing: true}
	out, err := l.Run(t.Context(), j)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(out, "seen.json"))
	if err != nil {
		t.Fatal(err)
	}
	var s map[string]any
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	if s["device"] != "auto" || s["precision"] != "bf16" || s["quantize"] != "4bit" || s["checkpointing"] != true {
		t.Errorf("spec.json: %s", b)
	}
}

func TestAJobOfAnotherVersionStartsOver(t *testing.T) {
	l, j := local(t, `[ -e "$out/epoch" ] && touch "$out/resumed"; touch "$out/epoch"`)
	l.Trainer = "/trainers/aaaa"
	resumed := func() bool {
		out, err := l.Run(t.Context(), j)
		if err != nil {
			t.Fatal(err)
		}
		_, err = os.Stat(filepath.Join(out, "resumed"))
		return err == nil
	}
	if resumed() {
		t.Fatal("the first run found something")
	}
	if !resumed() {
		t.Error("the same version did not go on from what there was")
	}
	l.Trainer = "/trainers/bbbb"
	if resumed() {
		t.Error("a new version went on from what the old one had left")
	}
}

// A child that cannot write its log for lack of disk, or says that it could not write, has a class of its own.
func TestAFullDiskHasItsClass(t *testing.T) {
	l, j := local(t, "echo 'OSError: [Errno 28] No space left on device' >&2; exit 1")
	if err := os.MkdirAll(l.JobDir(j.ID), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/full", filepath.Join(l.JobDir(j.ID), logFile)); err != nil {
		t.Fatal(err)
	}
	_, err := l.Run(t.Context(), j)
	var je *JobError
	if !errors.As(err, &je) || je.Class != FailDisk || !strings.Contains(err.Error(), "is full") {
		t.Errorf("%v", err)
	}
}

func TestLocalIsCalledOff(t *testing.T) {
	for _, before := range []bool{true, false} {
		l, j := local(t, "while :; do sleep 0.05; done")
		cancel := func() {
			if err := l.Cancel(t.Context(), j); err != nil {
				t.Error(err)
			}
		}
		if before {
			cancel()
		} else {
			go cancel()
		}
		_, err := l.Run(t.Context(), j)
		var je *JobError
		if !errors.As(err, &je) || je.Class != FailCancelled {
			t.Errorf("%v", err)
		}
		j.Update.Run = 2
		l.Python = "/bin/true" // its next run is another one
		if _, err := l.Run(t.Context(), j); err != nil {
			t.Errorf("the run after it: %v", err)
		}
	}
}

// The limits are the child's and its children's; the words are the trainer's, from what the allocation says.
func TestLocalHasLimits(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("limits are for Linux")
	}
	l, j := local(t, `{ sh -c 'ulimit -d'; nproc; } >"$out/limits"`)
	l.Resources = runner.Resources{MemoryBytes: 1 << 30, CPUs: 0.5}
	out, err := l.Run(t.Context(), j)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(out, "limits")); err != nil || string(got) != "1048576\n1\n" {
		t.Errorf("limits %q, %v; want 1 GiB in KiB, and one processor", got, err)
	}
}

func TestLogsOfAJob(t *testing.T) {
	l, j := local(t, "echo one; echo two")
	var got strings.Builder
	if err := l.Logs(t.Context(), j, &got); err != nil || got.Len() > 0 {
		t.Errorf("before it began: %q, %v", got.String(), err)
	}
	if _, err := l.Run(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	if err := l.Logs(t.Context(), j, &got); err != nil || got.String() != "one\ntwo\n" {
		t.Errorf("%q, %v", got.String(), err)
	}
}
