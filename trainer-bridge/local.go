package trainerbridge

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/internal/artifact"
	"ctrloop/internal/process"
	"ctrloop/schemas/control"
)

// Runner runs one job to its end and returns the folder with its results.
type Runner interface {
	Run(ctx context.Context, job control.JobStatus) (outDir string, err error)
}

// JobError is the end of a job that did not succeed, by class.
type JobError struct {
	Class FailureClass
	Err   error
}

func (e *JobError) Error() string { return fmt.Sprintf("%s: %v", e.Class, e.Err) }
func (e *JobError) Unwrap() error { return e.Err }

// FailureClass of a job, from its exit status.
type FailureClass string

// Failure classes and the exit statuses of the trainer that mean them.
const (
	FailBug         FailureClass = "bug"           // 1: a defect; the log has the traceback
	FailInput       FailureClass = "bad_input"     // 2: the specification or its data are wrong; trying again will not help
	FailMemory      FailureClass = "out_of_memory" // 3, or killed by the kernel
	FailDiverged    FailureClass = "diverged"      // 4: not-a-number
	FailInterrupted FailureClass = "interrupted"   // 5: stopped with a checkpoint; runs on when started again
	FailEvidence    FailureClass = "no_evidence"   // 6: too few clicks to learn from; the next data set may have more
	FailTimeout     FailureClass = "timeout"
	FailIncomplete  FailureClass = "incomplete" // it ended well, but what it left lacks a file
)

// hopeless are classes in which the same job fails the same way again: only other data or another configuration help.
var hopeless = []FailureClass{FailInput, FailEvidence, FailDiverged}

// retry says whether a job that failed its nth attempt runs again, and after how long: Backoff, doubled with each.
func (c Config) retry(class FailureClass, attempt int) (wait time.Duration, again bool) {
	if slices.Contains(hopeless, class) || attempt > c.Retries {
		return 0, false
	}
	const longest = 6 * time.Hour
	wait = c.Backoff
	for range attempt - 1 {
		wait = min(2*wait, longest)
	}
	return wait, true
}

func classify(err error) FailureClass {
	exit, ok := process.ExitOf(err)
	switch {
	case !ok || exit.Outcome == process.OutcomeNotStarted:
		return FailBug
	case exit.Signal == syscall.SIGKILL:
		return FailMemory
	case exit.Signal != 0:
		return FailInterrupted
	}
	switch exit.Code {
	case 2:
		return FailInput
	case 3:
		return FailMemory
	case 4:
		return FailDiverged
	case 5:
		return FailInterrupted
	case 6:
		return FailEvidence
	}
	return FailBug
}

// Local runs jobs as child processes on this machine.
type Local struct {
	Python    string   // interpreter of the trainer's environment
	Trainer   string   // folder for PYTHONPATH, see Extract
	Dir       string   // a folder per job lies here; it outlives the job, for its log and its checkpoint
	Base      string   // folder of the base prompt model
	Grammar   string   // file: grammar.json
	Catalogue string   // file: catalogue.jsonl
	Renderer  []string // command that draws creatives, speaking on stdin and stdout
	Threads   int
	Placement Placement     // of the models
	Timeout   time.Duration // without progress
	StopGrace time.Duration
	Store     *artifact.Store
	Log       zerolog.Logger
}

// Placement is where models lie and in which numbers they compute, as the trainer's specification has it. The zero value
// is the embedded model's.
type Placement struct {
	Device        string `json:"device,omitempty"`
	Precision     string `json:"precision,omitempty"`
	Quantize      string `json:"quantize,omitempty"`
	Checkpointing bool   `json:"checkpointing,omitempty"`
}

// JobDir is the folder of a job: spec.json, job.log and out/.
func (l *Local) JobDir(id string) string { return filepath.Join(l.Dir, id) }

// Run runs a job of the control log. A job that was interrupted finds its checkpoint in out/.
func (l *Local) Run(ctx context.Context, job control.JobStatus) (string, error) {
	spec, err := l.spec(job)
	if err != nil {
		return "", &JobError{FailInput, err}
	}
	return l.Execute(ctx, spec)
}

// Execute writes spec.json and runs the trainer on it; it returns the folder out/ of the job.
func (l *Local) Execute(ctx context.Context, spec TrainerSpec) (string, error) {
	dir := l.JobDir(spec.ID)
	out := filepath.Join(dir, "out")
	if err := l.clearOfOthers(dir, out); err != nil {
		return "", fmt.Errorf("job folder: %w", err)
	}
	raw, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encode spec: %w", err)
	}
	specFile := filepath.Join(dir, "spec.json")
	if err := os.WriteFile(specFile, raw, 0o644); err != nil {
		return "", fmt.Errorf("write spec: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(dir, "job.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return "", fmt.Errorf("job log: %w", err)
	}
	defer log.Close()

	runCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		stopStalled(runCtx, cancel, l.Timeout, log.Name(), filepath.Join(out, curveFile))
	}()
	err = process.Run(runCtx, process.Spec{
		Name: spec.ID, Path: l.Python, Args: []string{"-m", "ctrloop_trainer.job", specFile, "--out", out}, Dir: dir,
		Env: []string{
			"PYTHONPATH=" + l.Trainer,
			"PYTHONUNBUFFERED=1",
			"PYTHONDONTWRITEBYTECODE=1",
			"HF_HUB_OFFLINE=1",
			"TOKENIZERS_PARALLELISM=false",
		},
		Threads: l.Threads, Stdout: log, Stderr: log, Grace: l.StopGrace,
	}, l.Log)
	stalled := runCtx.Err() != nil
	cancel()
	<-watched
	switch {
	case err == nil:
		return out, nil
	case ctx.Err() != nil:
		return "", &JobError{FailInterrupted, ctx.Err()}
	case stalled:
		return "", &JobError{FailTimeout, fmt.Errorf("stopped after %v without progress (trainer.timeout)", l.Timeout)}
	}
	return "", &JobError{classify(err), err}
}

// curveFile is where a running job writes a line a step, in its folder out.
const curveFile = "metrics.jsonl"

// trainerFile in a job's folder names the version of the trainer that began it.
const trainerFile = "trainer"

// clearOfOthers makes the folder out, empty if another version of the trainer has begun it: the trainer refuses to go on
// there, since half a model by each version would be no version's.
func (l *Local) clearOfOthers(dir, out string) error {
	own, marker := filepath.Base(l.Trainer), filepath.Join(dir, trainerFile)
	if before, err := os.ReadFile(marker); err == nil && string(before) != own {
		l.Log.Info().Str("job", filepath.Base(dir)).Msg("another version of the trainer has begun this job: it starts over")
		if err := os.RemoveAll(out); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	return os.WriteFile(marker, []byte(own), 0o644)
}

// stopStalled calls stop when none of the files has grown for the limit. It returns when ctx ends.
func stopStalled(ctx context.Context, stop func(), limit time.Duration, files ...string) {
	look := time.NewTicker(max(limit/20, time.Millisecond))
	defer look.Stop()
	p := newProgress(limit, time.Now())
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-look.C:
			if p.stalled(now, sizes(files)) {
				stop()
				return
			}
		}
	}
}

// progress knows since when nothing has grown.
type progress struct {
	limit time.Duration
	size  int64
	since time.Time
}

func newProgress(limit time.Duration, now time.Time) *progress {
	return &progress{limit: limit, since: now}
}

// stalled gets the number of bytes written so far, and says whether it has not changed for the time limit.
func (p *progress) stalled(now time.Time, size int64) bool {
	if size != p.size {
		p.size, p.since = size, now
	}
	return now.Sub(p.since) >= p.limit
}

// sizes is the sum of the files' sizes; a file that is not there has none.
func sizes(files []string) (sum int64) {
	for _, f := range files {
		if info, err := os.Stat(f); err == nil {
			sum += info.Size()
		}
	}
	return sum
}

// watched are the fields of a training curve that fit a progress line, in its order.
var watched = []string{"stage", "model", "arm", "epoch", "step", "loss", "matching", "valid"}

// Progress is the last line of a job's metrics.jsonl, as "name value" pairs of what is watched; empty before there
// is one.
func (l *Local) Progress(id string) string {
	b, err := os.ReadFile(filepath.Join(l.JobDir(id), "out", curveFile))
	if err != nil {
		return ""
	}
	b = bytes.TrimRight(b, "\n")
	var m map[string]any
	if json.Unmarshal(b[bytes.LastIndexByte(b, '\n')+1:], &m) != nil {
		return "" // the line is still being written
	}
	var parts []string
	for _, k := range watched {
		switch v := m[k].(type) {
		case float64:
			parts = append(parts, fmt.Sprintf("%s %.3g", k, v))
		case string:
			parts = append(parts, k+" "+v)
		}
	}
	return strings.Join(parts, " ")
}

// TrainerSpec is the trainer's spec.json, see docs/jobs.md: in paths of this machine. What is empty is not given.
type TrainerSpec struct {
	Kind    Kind   `json:"kind"`
	ID      string `json:"id"`
	Seed    uint64 `json:"seed"`
	Threads int    `json:"threads"`
	Placement
	Base          string         `json:"base,omitempty"`
	BaseDigest    string         `json:"base_digest,omitempty"`
	Dataset       string         `json:"dataset,omitempty"`
	DatasetDigest string         `json:"dataset_digest,omitempty"`
	RewardModel   string         `json:"reward_model,omitempty"`
	RefereeModel  string         `json:"referee_model,omitempty"`
	Previous      string         `json:"previous,omitempty"`
	Truth         string         `json:"truth,omitempty"` // file: creative -> true click-through rate
	Renderer      []string       `json:"renderer"`
	Grammar       string         `json:"grammar"`
	Catalogue     string         `json:"catalogue"`
	Hyper         map[string]any `json:"hyper"`
}

func (l *Local) spec(job control.JobStatus) (TrainerSpec, error) {
	var s Spec
	if err := json.Unmarshal(job.Spec, &s); err != nil {
		return TrainerSpec{}, fmt.Errorf("job %s: spec: %w", job.ID, err)
	}
	t := TrainerSpec{
		Kind: s.Kind, ID: job.ID, Seed: s.Seed, Threads: l.Threads, Placement: l.Placement, Base: l.Base, BaseDigest: s.Base,
		Dataset: l.Store.Path(s.Dataset), DatasetDigest: s.Dataset,
		Renderer: l.Renderer, Grammar: l.Grammar, Catalogue: l.Catalogue, Hyper: s.Hyper,
	}
	if t.Hyper == nil {
		t.Hyper = map[string]any{}
	}
	for _, m := range []struct {
		digest string
		path   *string
	}{{s.Reward, &t.RewardModel}, {s.Referee, &t.RefereeModel}, {s.Previous, &t.Previous}} {
		if m.digest != "" {
			*m.path = filepath.Join(l.Store.Path(m.digest), "model")
		}
	}
	for _, d := range []string{s.Dataset, s.Reward, s.Referee, s.Previous} {
		if d != "" && !l.Store.Has(d) {
			return t, fmt.Errorf("job %s needs artifact %s, which is not in the store: was the data folder moved or cleaned?", job.ID, d)
		}
	}
	return t, nil
}
