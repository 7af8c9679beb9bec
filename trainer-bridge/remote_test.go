package trainerbridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/schemas/control"
	"ctrloop/trainer-bridge/runner"
)

// fakeCluster is a scheduler in memory, whose tasks are moved by the test.
type fakeCluster struct {
	mu       sync.Mutex
	tasks    map[string]runner.Status
	made     int
	stops    int
	down     error // the answer to everything
	unheard  bool  // submissions arrive, their answers do not
	deaf     bool  // stops are answered, and nothing stops
	submitAs runner.Status
	onStop   func()
}

func (c *fakeCluster) Submit(_ context.Context, t runner.Task) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != nil {
		return c.down
	}
	if _, ok := c.tasks[t.Name]; !ok {
		c.made++
		c.tasks[t.Name] = c.submitAs
	}
	if c.unheard {
		c.unheard = false
		return errors.New("the answer is lost")
	}
	return nil
}

func (c *fakeCluster) Look(_ context.Context, name string) (runner.Status, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.tasks[name]
	switch {
	case c.down != nil:
		return s, c.down
	case !ok:
		return s, runner.ErrUnknown
	}
	return s, nil
}

func (c *fakeCluster) Stop(_ context.Context, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stops++
	if c.down != nil {
		return c.down
	}
	if _, ok := c.tasks[name]; ok && !c.deaf {
		c.tasks[name] = runner.Status{State: runner.Failed, Cause: runner.Stopped, Reason: "stopped"}
		if c.onStop != nil {
			c.onStop()
		}
	}
	return nil
}

func (c *fakeCluster) Log(_ context.Context, _ string, w io.Writer) error {
	_, err := io.WriteString(w, "no such image")
	return err
}

// all moves every task.
func (c *fakeCluster) all(s runner.Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.tasks {
		c.tasks[name] = s
	}
}

func (c *fakeCluster) set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

func (c *fakeCluster) counts() (made, stops int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.made, c.stops
}

// remote returns a runner over a cluster that starts each task at once, and a job.
func remote(t *testing.T) (*Remote, *fakeCluster, control.JobStatus) {
	t.Helper()
	l, job := local(t, "")
	c := &fakeCluster{tasks: map[string]runner.Status{}, submitAs: runner.Status{State: runner.Running}}
	return &Remote{
		Inputs: l.Inputs, Cluster: c, Interval: time.Second, Timeout: time.Hour, StartTimeout: 2 * time.Hour, LostAfter: time.Minute,
		StopGrace: 30 * time.Second, Log: zerolog.Nop(),
	}, c, job
}

// note writes what a run writes when it ends.
func note(t *testing.T, r *Remote, job control.JobStatus, text string) {
	t.Helper()
	f := r.files(job)
	_ = os.Mkdir(f.path("claim-%d"), 0o755)
	if err := os.WriteFile(f.path("exit-%d"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

type ending struct {
	out string
	err error
}

func (e ending) class() FailureClass {
	if je, ok := errors.AsType[*JobError](e.err); ok {
		return je.Class
	}
	return ""
}

// begin runs a job in the background.
func begin(ctx context.Context, r *Remote, job control.JobStatus) chan ending {
	end := make(chan ending, 1)
	go func() {
		out, err := r.Run(ctx, job)
		end <- ending{out, err}
	}()
	return end
}

// A bridge dies after it has submitted and before it knows: the next one finds the run and makes no second.
func TestARunIsSubmittedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c, job := remote(t)
		c.unheard = true
		ctx, die := context.WithCancel(t.Context())
		end := begin(ctx, r, job)
		synctest.Wait()
		if made, _ := c.counts(); made != 1 {
			t.Fatalf("%d tasks", made)
		}
		die()
		if e := <-end; e.class() != "" || !errors.Is(e.err, context.Canceled) {
			t.Fatalf("a bridge that ends: %v", e.err)
		}
		again := *r
		job.State, job.Update = control.JobRunning, control.JobUpdate{Attempt: 2, Run: 1}
		end = begin(t.Context(), &again, job)
		time.Sleep(time.Minute)
		note(t, r, job, "0\n")
		e := <-end
		if made, stops := c.counts(); e.err != nil || made != 1 || stops != 0 || e.out != filepath.Join(r.JobDir(job.ID), "out") {
			t.Errorf("%+v; %d tasks, %d stops", e, made, stops)
		}
	})
}

// What a run notes is its class; a note that is none is a result that is not whole.
func TestTheNoteOfARunDecides(t *testing.T) {
	for text, want := range map[string]FailureClass{
		"0\n": "", "1\n": FailBug, "2\n": FailInput, "3\n": FailMemory, "137\n": FailMemory, "4\n": FailDiverged, "5\n": FailInterrupted,
		"143\n": FailInterrupted, "6\n": FailEvidence, "127\n": FailInput, "8\n": FailInput, "": FailIncomplete, "0x": FailIncomplete,
		"999": FailIncomplete,
	} {
		synctest.Test(t, func(t *testing.T) {
			r, c, job := remote(t)
			end := begin(t.Context(), r, job)
			synctest.Wait()
			c.all(runner.Status{State: runner.Failed, Cause: runner.Memory}) // what the cluster says besides does not count
			note(t, r, job, text)
			if e := <-end; e.class() != want || (e.err == nil) != (want == "") {
				t.Errorf("note %q: %v, want class %q", text, e.err, want)
			}
		})
	}
}

// Where a run left no note, the cluster's word counts, after a while.
func TestWhatAClusterSaysOfAnEnd(t *testing.T) {
	for _, test := range []struct {
		status runner.Status
		want   FailureClass
		words  string
	}{
		{runner.Status{State: runner.Succeeded}, FailIncomplete, "left no exit-1"},
		{runner.Status{State: runner.Failed, Cause: runner.Memory}, FailMemory, "lack of memory"},
		{runner.Status{State: runner.Failed, Cause: runner.Stopped}, FailCancelled, "stopped on the cluster"},
		{runner.Status{State: runner.Failed, Cause: runner.Preempted}, FailInterrupted, ""},
		{runner.Status{State: runner.Failed, Cause: runner.Lost, Reason: "node down"}, FailLost, "node down"},
		{runner.Status{State: runner.Failed, Cause: runner.Deadline}, FailTimeout, "time limit"},
		{runner.Status{State: runner.Failed, Cause: runner.Unstarted}, FailUnstarted, ""},
		{runner.Status{State: runner.Failed, Exit: 137}, FailMemory, "SIGKILL"},
		{runner.Status{State: runner.Failed, Exit: 127}, FailInput, "trainer.cluster.python"},
		{runner.Status{State: runner.Failed, Exit: 8}, FailInput, "is it shared"},
		{runner.Status{State: runner.Failed, Reason: "why"}, FailBug, "why"},
	} {
		synctest.Test(t, func(t *testing.T) {
			r, c, job := remote(t)
			end := begin(t.Context(), r, job)
			synctest.Wait()
			begun := time.Now()
			c.all(test.status)
			e := <-end
			if e.class() != test.want || !strings.Contains(e.err.Error(), test.words) {
				t.Errorf("%+v: %v, want class %s and %q", test.status, e.err, test.want, test.words)
			}
			if waited := time.Since(begun); waited < r.LostAfter || waited > r.LostAfter+2*r.Interval {
				t.Errorf("%+v: a note had %v to appear", test.status, waited)
			}
		})
	}
}

// A cluster that forgets a run may still be running it: the next run writes elsewhere.
func TestALostRunKeepsItsFolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c, job := remote(t)
		end := begin(t.Context(), r, job)
		synctest.Wait()
		if err := os.Mkdir(r.files(job).path("claim-%d"), 0o755); err != nil { // it has begun
			t.Fatal(err)
		}
		c.set(func() { clear(c.tasks) })
		if e := <-end; e.class() != FailLost {
			t.Fatalf("%v, want class lost", e.err)
		}
		job.Update = control.JobUpdate{Attempt: 2, Run: 2}
		end = begin(t.Context(), r, job)
		synctest.Wait()
		note(t, r, job, "0")
		if e := <-end; e.err != nil || filepath.Base(e.out) != "out-2" {
			t.Errorf("the next run: %+v", e)
		}
		job.Update.Run = 3
		if got := outFolder(r.JobDir(job.ID), 3); filepath.Base(got) != "out-2" || newestOut(r.JobDir(job.ID)) != got {
			t.Errorf("the third run, after one that ended: %s, newest %s", got, newestOut(r.JobDir(job.ID)))
		}
	})
}

// A run that stands still is stopped; whether it ends or not, the job fails with the reason.
func TestARunThatHangsIsStopped(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r, c, job := remote(t)
			c.deaf = deaf
			c.onStop = func() { note(t, r, job, "5") }
			end := begin(t.Context(), r, job)
			synctest.Wait()
			_ = os.Mkdir(r.files(job).path("claim-%d"), 0o755)
			begun := time.Now()
			for range 5 { // four hours of work
				time.Sleep(50 * time.Minute)
				grown := []byte(strings.Repeat(".", int(time.Since(begun).Minutes())))
				if err := os.WriteFile(filepath.Join(r.JobDir(job.ID), logFile), grown, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if _, stops := c.counts(); stops != 0 {
				t.Fatal("stopped while it made progress")
			}
			e := <-end
			if _, stops := c.counts(); e.class() != FailTimeout || stops == 0 || !strings.Contains(e.err.Error(), "without progress") {
				t.Errorf("%v, %d stops", e.err, stops)
			}
			if lost := fileExists(r.files(job).path("lost-%d")); lost != deaf {
				t.Errorf("deaf %v: the folder is given up: %v", deaf, lost)
			}
		})
	}
}

// A run that finds no resources is called off for good, also where the cluster keeps it waiting.
func TestARunThatNeverStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c, job := remote(t)
		c.submitAs, c.deaf = runner.Status{State: runner.Waiting, Reason: "no GPU"}, true
		begun := time.Now()
		ctx, die := context.WithCancel(t.Context())
		end := begin(ctx, r, job)
		time.Sleep(time.Hour)
		die()
		<-end
		end = begin(t.Context(), r, job) // another bridge: the hour counts
		e := <-end
		if e.class() != FailUnstarted || !strings.Contains(e.err.Error(), "no GPU") || time.Since(begun) > r.StartTimeout+time.Minute {
			t.Errorf("after %v: %v", time.Since(begun), e.err)
		}
		if out, code := sh(t, r, job); code != runner.ExitTaken {
			t.Errorf("it started after all, with status %d: %s", code, out)
		}
	})
}

// Cancel works in every state of a run, and a result that is there is not thrown away.
func TestCancelInEachState(t *testing.T) {
	for _, state := range []string{"queued", "waiting", "waiting, deaf", "running", "running, no note", "server down", "ended"} {
		synctest.Test(t, func(t *testing.T) {
			r, c, job := remote(t)
			cancel := func() {
				if err := r.Cancel(t.Context(), job); err != nil && state != "server down" {
					t.Fatal(err)
				}
			}
			if state == "queued" {
				cancel()
			}
			c.submitAs.State = runner.Running
			if strings.HasPrefix(state, "waiting") {
				c.submitAs.State = runner.Waiting
			}
			c.deaf = state == "waiting, deaf"
			end := begin(t.Context(), r, job)
			synctest.Wait()
			switch state {
			case "queued":
			case "running":
				_ = os.Mkdir(r.files(job).path("claim-%d"), 0o755)
				c.onStop = func() { note(t, r, job, "5") }
				cancel()
			case "running, no note":
				_ = os.Mkdir(r.files(job).path("claim-%d"), 0o755)
				cancel()
			case "server down":
				_ = os.Mkdir(r.files(job).path("claim-%d"), 0o755)
				c.set(func() { c.down = errors.New("connection refused") })
				cancel()
				time.Sleep(10 * time.Second)
				c.set(func() { c.down = nil })
			case "ended":
				note(t, r, job, "0")
				cancel()
			default:
				cancel()
			}
			e := <-end
			made, _ := c.counts()
			switch {
			case state == "ended":
				if e.err != nil {
					t.Errorf("%s: %v", state, e.err)
				}
			case e.class() != FailCancelled:
				t.Errorf("%s: %v, want class cancelled", state, e.err)
			case state == "queued" && made != 0:
				t.Error("a job that was called off before it was submitted was submitted")
			}
		})
	}
}

// While the server of a cluster is down a run goes on; it is given up only when it does not write either.
func TestAServerThatIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c, job := remote(t)
		failed := 0
		r.CallFailed = func(error) { failed++ }
		c.down = errors.New("connection refused")
		end := begin(t.Context(), r, job)
		time.Sleep(10 * time.Minute)
		c.set(func() { c.down = nil })
		time.Sleep(time.Minute)
		if made, _ := c.counts(); made != 1 {
			t.Fatalf("%d tasks", made)
		}
		c.set(func() { c.down = errors.New("connection refused") })
		time.Sleep(30 * time.Minute)
		note(t, r, job, "0")
		if e := <-end; e.err != nil || failed < 100 {
			t.Errorf("%v; %d calls failed", e.err, failed)
		}

		job.Update.Run = 2
		c.set(func() { c.down = nil })
		end = begin(t.Context(), r, job)
		synctest.Wait()
		c.set(func() { c.down = errors.New("connection refused") })
		if e := <-end; e.class() != FailLost || !strings.Contains(e.err.Error(), "connection refused") {
			t.Errorf("silent on both ways: %v", e.err)
		}
	})
}

func TestARefusedRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c, job := remote(t)
		c.down = fmt.Errorf("%w: no such partition", runner.ErrRefused)
		if e := <-begin(t.Context(), r, job); e.class() != FailRefused || !strings.Contains(e.err.Error(), "no such partition") {
			t.Errorf("%v", e.err)
		}
	})
}

// sh runs the script of a job's run, as a cluster does.
func sh(t *testing.T, r *Remote, job control.JobStatus) (output string, status int) {
	t.Helper()
	cmd := exec.Command("sh", r.files(job).path("run-%d.sh"))
	out, err := cmd.CombinedOutput()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// written returns a runner whose jobs folder has a name that a shell must not read, and a job whose run is ready to start.
func written(t *testing.T, python string) (*Remote, control.JobStatus) {
	t.Helper()
	r, _, job := remote(t)
	r.Dir = filepath.Join(t.TempDir(), "it's $HOME")
	if err := os.WriteFile(r.Python, []byte("#!/bin/sh\nspec=$3; out=$5\n"+python), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := r.prepare(job, r.files(job)); err != nil {
		t.Fatal(err)
	}
	return r, job
}

func TestTheScriptRunsOnce(t *testing.T) {
	r, job := written(t, `cp "$spec" "$out/seen.json"; echo learning; echo "$PYTHONPATH" >>"$out/runs"; exit 4`)
	out, code := sh(t, r, job)
	if code != 4 || !strings.Contains(out, "learning") {
		t.Errorf("status %d, output %q", code, out)
	}
	if status, there, err := r.files(job).exit(); status != 4 || !there || err != nil {
		t.Errorf("note: %d, %v, %v", status, there, err)
	}
	if out, code := sh(t, r, job); code != runner.ExitTaken {
		t.Errorf("a second copy ended with %d: %s", code, out)
	}
	if runs, err := os.ReadFile(filepath.Join(r.JobDir(job.ID), "out", "runs")); err != nil || strings.Count(string(runs), "\n") != 1 {
		t.Errorf("runs: %q, %v", runs, err)
	}
	raw, err := os.ReadFile(filepath.Join(r.JobDir(job.ID), "out", "seen.json"))
	var s TrainerSpec
	if err := errors.Join(err, json.Unmarshal(raw, &s)); err != nil || s.ID != job.ID || s.Dataset != r.Store.Path(s.DatasetDigest) {
		t.Errorf("spec: %v: %s", err, raw)
	}
	var log strings.Builder
	if err := r.Logs(t.Context(), job, &log); err != nil || log.String() != "learning\n" {
		t.Errorf("log: %q, %v", log.String(), err)
	}
}

// A cluster's SIGTERM reaches the trainer, which has time for a checkpoint, and the note is the trainer's status.
func TestTheScriptPassesOnATerm(t *testing.T) {
	r, job := written(t, `trap 'echo saved >"$out/checkpoint"; exit 5' TERM; echo >"$out/ready"; while :; do sleep 0.05; done`)
	cmd := exec.Command("sh", r.files(job).path("run-%d.sh"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(r.JobDir(job.ID), "out")
	for deadline := time.Now().Add(time.Minute); !fileExists(filepath.Join(out, "ready")); {
		if time.Now().After(deadline) {
			t.Fatal("it never began")
		}
		<-time.After(5 * time.Millisecond)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait()
	status, there, err := r.files(job).exit()
	if cmd.ProcessState.ExitCode() != 5 || status != 5 || !there || err != nil || !fileExists(filepath.Join(out, "checkpoint")) {
		t.Errorf("status %d; note %d, %v, %v", cmd.ProcessState.ExitCode(), status, there, err)
	}
}

func TestTheScriptWithoutPython(t *testing.T) {
	r, job := written(t, "")
	if err := os.Remove(r.Python); err != nil {
		t.Fatal(err)
	}
	if out, code := sh(t, r, job); code != 127 {
		t.Errorf("status %d: %s", code, out)
	}
}

func TestNamesOfTasks(t *testing.T) {
	r, _, job := remote(t)
	job.ID = "Referee_" + strings.Repeat("x", 80)
	name := r.name(job)
	if !regexp.MustCompile(`^[a-z][a-z0-9-]*[a-z0-9]$`).MatchString(name) || len(name) > runner.MaxName {
		t.Errorf("%q of %d bytes", name, len(name))
	}
	attempt := job
	attempt.Update = control.JobUpdate{Attempt: 7, Run: 1}
	if r.name(attempt) != name {
		t.Error("another attempt at the same run has another name")
	}
	for what, change := range map[string]func(*Remote, *control.JobStatus){
		"run":    func(_ *Remote, j *control.JobStatus) { j.Update.Run = 2 },
		"spec":   func(_ *Remote, j *control.JobStatus) { j.Spec = json.RawMessage(`{}`) },
		"job":    func(_ *Remote, j *control.JobStatus) { j.ID += "y" },
		"folder": func(r *Remote, _ *control.JobStatus) { r.Dir += "2" },
	} {
		r2, j2 := *r, job
		change(&r2, &j2)
		if r2.name(j2) == name {
			t.Errorf("another %s has the same name", what)
		}
	}
}

func TestPathsOfAShare(t *testing.T) {
	s := share{{Here: "/data", There: "/mnt/ctr"}, {Here: "/data/models", There: "/models"}}
	spec := TrainerSpec{
		Base: "/data/models/base", Dataset: "/data/artifacts/x", Grammar: "/data/jobs/g", Catalogue: "/data/jobs/c",
		Renderer: []string{"/opt/python", "-m", "paint", "--model", "/data/models/sd", "--", "/data/jobs/ctrloop", "render"},
	}
	got, err := s.translate(spec, "/opt/python")
	if err != nil || got.Base != "/models/base" || got.Dataset != "/mnt/ctr/artifacts/x" || got.RewardModel != "" ||
		strings.Join(got.Renderer, " ") != "/opt/python -m paint --model /models/sd -- /mnt/ctr/jobs/ctrloop render" {
		t.Errorf("%+v, %v", got, err)
	}
	spec.Base, spec.Previous = "/database/base", "/elsewhere/model"
	_, err = s.translate(spec, "/opt/python")
	for _, path := range []string{spec.Base, spec.Previous} {
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s is not shared, and the error says %v", path, err)
		}
	}
	same, err := share(nil).translate(spec, "")
	if err != nil || same.Base != spec.Base || same.Renderer[0] != "/opt/python" {
		t.Errorf("without a map: %+v, %v", same, err)
	}
}

// A path that the cluster cannot see fails the job before anything is submitted.
func TestARunOutsideTheShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c, job := remote(t)
		r.Paths = []PathMap{{Here: r.Dir, There: "/mnt/jobs"}}
		e := <-begin(t.Context(), r, job)
		if made, _ := c.counts(); e.class() != FailInput || made != 0 || !strings.Contains(e.err.Error(), r.Store.Path("")[:5]) {
			t.Errorf("%v; %d tasks", e.err, made)
		}
	})
}

func TestPlaceProgram(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "ctrloop")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho one"), 0o755); err != nil {
		t.Fatal(err)
	}
	to, err := PlaceProgram(program, filepath.Join(dir, "jobs"))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(to).Output(); err != nil || string(out) != "one\n" {
		t.Errorf("%q, %v", out, err)
	}
	if again, err := PlaceProgram(program, filepath.Join(dir, "jobs")); again != to || err != nil {
		t.Errorf("again: %s, %v", again, err)
	}
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho two"), 0o755); err != nil {
		t.Fatal(err)
	}
	if other, err := PlaceProgram(program, filepath.Join(dir, "jobs")); other == to || err != nil {
		t.Errorf("another release: %s, %v", other, err)
	}
}
