package trainerbridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/artifact"
	"ctrloop/internal/controllog"
	"ctrloop/internal/controllog/controltest"
	"ctrloop/internal/telemetry/telemetrytest"
	"ctrloop/schemas/control"
)

// trainer pretends to train: it leaves files, or fails as it is told, attempt by attempt.
type trainer struct {
	dir   string
	fail  []FailureClass // of the first attempts
	leave []string       // files
	runs  atomic.Int64
	busy  atomic.Int64
	most  atomic.Int64
	hold  time.Duration
	saw   []int // the numbers of runs
	spoil func(out string) error
	off   []int        // the runs that were called off
	deaf  atomic.Int64 // so many calls to Cancel fail
}

func (r *trainer) Run(ctx context.Context, j control.JobStatus) (string, error) {
	n := r.runs.Add(1)
	r.saw = append(r.saw, run(j))
	r.most.Store(max(r.most.Load(), r.busy.Add(1)))
	defer r.busy.Add(-1)
	select {
	case <-time.After(r.hold):
	case <-ctx.Done():
		return "", &JobError{FailInterrupted, ctx.Err()}
	}
	if int(n) <= len(r.fail) {
		return "", &JobError{r.fail[n-1], errors.New("told to")}
	}
	out := filepath.Join(r.dir, fmt.Sprint(j.ID, "-", n))
	for _, f := range r.leave {
		p := filepath.Join(out, f)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(p, []byte(`{"n":`+fmt.Sprint(n)+`}`), 0o644); err != nil {
			return "", err
		}
	}
	if r.spoil != nil {
		return out, r.spoil(out)
	}
	return out, nil
}

func (r *trainer) Cancel(_ context.Context, j control.JobStatus) error {
	if n := r.deaf.Add(-1); n >= 0 {
		return errors.New("the cluster is down")
	}
	r.off = append(r.off, run(j))
	return nil
}

func (r *trainer) Logs(context.Context, control.JobStatus, io.Writer) error { return nil }

// whole are the files of a rounds job.
func whole() (fs []string) {
	for _, f := range adapterFiles {
		fs = append(fs, f)
	}
	return fs
}

type plant struct {
	log   *controltest.Log
	store *artifact.Store
	now   time.Time
}

func newPlant(t *testing.T) *plant {
	t.Helper()
	store, err := artifact.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &plant{log: controltest.New(), store: store, now: time.Unix(1_000_000, 0)}
}

func (p *plant) bridge(t *testing.T, r Runner, lead controllog.Leader) *Service {
	t.Helper()
	metrics := NewMetrics(Default(), prometheus.NewRegistry())
	s, err := New(Default(), Deps{Lead: lead, Runner: r, Store: p.store, Base: "b", Log: zerolog.Nop(), Metrics: metrics})
	if err != nil {
		t.Fatal(err)
	}
	s.now = func() time.Time { return p.now }
	return s
}

func (p *plant) submit(t *testing.T, id string, kind Kind) {
	t.Helper()
	spec := []byte(`{"kind":"` + kind + `","base":"b"}`)
	p.log.Put(t, control.JobSubmitted, control.JobEntity(id), control.Job{ID: id, Kind: string(kind), Spec: spec})
}

// settle steps until nothing is left to do.
func (p *plant) settle(t *testing.T, s *Service) {
	t.Helper()
	for range 100 {
		worked, err := s.step(t.Context(), p.log)
		if err != nil {
			t.Fatal(err)
		}
		if !worked {
			return
		}
	}
	t.Fatal("100 steps, and still something to do")
}

// A job that ended well but lacks a file fails with its class, is tried again, and stops nobody.
func TestAnIncompleteResultFailsItsJobOnly(t *testing.T) {
	p := newPlant(t)
	r := &trainer{dir: t.TempDir(), leave: []string{"metrics.json"}}
	s := p.bridge(t, r, controllog.Alone(p.log))
	p.submit(t, "rounds-a", KindRounds)
	p.settle(t, s)
	j := p.log.State().Jobs["rounds-a"]
	if j.State != control.JobQueued || j.Update.Class != string(FailIncomplete) || !j.NotBefore.Equal(p.now.Add(time.Minute)) {
		t.Fatalf("after the first attempt: %+v", j)
	}
	r.leave = whole()
	p.submit(t, "reward-b", KindReward)
	p.settle(t, s)
	if got := p.log.State().Jobs["reward-b"].State; got != control.JobSucceeded {
		t.Fatalf("a job behind it is %s", got)
	}
	p.now = p.now.Add(time.Minute)
	p.settle(t, s)
	st := p.log.State()
	if got := st.Jobs["rounds-a"]; got.State != control.JobSucceeded || got.Update.Attempt != 2 {
		t.Errorf("second attempt: %+v", got)
	}
	if len(st.Models) != 2 {
		t.Errorf("%d versions, want one of each job", len(st.Models))
	}
}

// A log of an older release can hold a finished job that no version can be made of.
func TestAFinishedJobWithoutItsFilesIsDiscarded(t *testing.T) {
	p := newPlant(t)
	out := t.TempDir()
	if err := os.WriteFile(filepath.Join(out, "metrics.json"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	digest, err := p.store.PutDir(out)
	if err != nil {
		t.Fatal(err)
	}
	p.submit(t, "rounds-old", KindRounds)
	p.log.Put(t, control.JobStarted, control.JobEntity("rounds-old"), control.JobUpdate{Attempt: 9})
	p.log.Put(t, control.JobFinished, control.JobEntity("rounds-old"), control.JobUpdate{Attempt: 9, Artifact: digest})
	p.submit(t, "reward-new", KindReward)
	r := &trainer{dir: t.TempDir(), leave: whole()}
	p.settle(t, p.bridge(t, r, controllog.Alone(p.log)))
	st := p.log.State()
	if old := st.Jobs["rounds-old"]; old.State != control.JobBroken || !strings.Contains(old.Update.Error, "left no") {
		t.Errorf("the old job: %+v", old)
	}
	if st.Jobs["reward-new"].State != control.JobSucceeded || r.runs.Load() != 1 {
		t.Errorf("the new job: %+v, %d runs", st.Jobs["reward-new"], r.runs.Load())
	}
}

func TestRetriesByClass(t *testing.T) {
	for class, attempts := range map[FailureClass]int64{
		FailMemory: 3, FailTimeout: 3, FailInterrupted: 3, FailBug: 3, FailIncomplete: 3, FailInput: 1, FailEvidence: 1, FailDiverged: 1,
	} {
		p := newPlant(t)
		r := &trainer{fail: slices.Repeat([]FailureClass{class}, 10)}
		s := p.bridge(t, r, controllog.Alone(p.log))
		p.submit(t, "reward-a", KindReward)
		start := p.now
		for range 10 {
			p.settle(t, s)
			if at := p.log.State().Jobs["reward-a"].NotBefore; !at.IsZero() {
				p.now = at
			}
		}
		if j := p.log.State().Jobs["reward-a"]; j.State != control.JobBroken || r.runs.Load() != attempts {
			t.Errorf("%s: %s after %d attempts, want %d", class, j.State, r.runs.Load(), attempts)
		}
		if waited := p.now.Sub(start); attempts == 3 && waited != 3*time.Minute {
			t.Errorf("%s: waited %v, want 1 + 2 minutes", class, waited)
		}
	}
}

// A failure ends a run, and the death of a bridge does not: what goes on elsewhere is found under the number of its run.
func TestRunsGoOverRestarts(t *testing.T) {
	p := newPlant(t)
	r := &trainer{dir: t.TempDir(), leave: whole(), fail: []FailureClass{FailLost}}
	p.submit(t, "rounds-a", KindRounds)
	p.log.Put(t, control.JobStarted, control.JobEntity("rounds-a"), control.JobUpdate{Attempt: 1, Run: 1}) // and the bridge died
	s := p.bridge(t, r, controllog.Alone(p.log))
	p.settle(t, s)
	p.now = p.now.Add(time.Minute)
	p.log.Put(t, control.JobStarted, control.JobEntity("rounds-a"), control.JobUpdate{Attempt: 3, Run: 2}) // and again
	p.settle(t, s)
	j := p.log.State().Jobs["rounds-a"]
	if !slices.Equal(r.saw, []int{1, 2}) || j.State != control.JobSucceeded || j.Update.Attempt != 4 || j.Update.Run != 2 {
		t.Errorf("runs %v; job %+v", r.saw, j)
	}
}

// A job that was cancelled while no bridge was there, and goes on elsewhere, is called off by the next one, until that is done.
func TestACancelledRunIsCalledOff(t *testing.T) {
	p := newPlant(t)
	r := &trainer{dir: t.TempDir(), leave: whole()}
	r.deaf.Store(2)
	p.submit(t, "rounds-a", KindRounds)
	p.submit(t, "rounds-b", KindRounds)
	p.log.Put(t, control.JobStarted, control.JobEntity("rounds-a"), control.JobUpdate{Attempt: 5, Run: 3})
	p.log.Put(t, control.JobCancelled, control.JobEntity("rounds-a"), nil)
	p.log.Put(t, control.JobCancelled, control.JobEntity("rounds-b"), nil) // it never began
	s := p.bridge(t, r, controllog.Alone(p.log))
	for range 5 {
		p.settle(t, s)
	}
	if !slices.Equal(r.off, []int{3}) || r.runs.Load() != 0 {
		t.Errorf("called off: %v; %d runs", r.off, r.runs.Load())
	}
	p.log.Put(t, control.JobRetried, control.JobEntity("rounds-a"), nil)
	p.settle(t, s)
	if j := p.log.State().Jobs["rounds-a"]; j.State != control.JobSucceeded || !slices.Equal(r.saw, []int{4}) {
		t.Errorf("retried: runs %v, %+v", r.saw, j)
	}
}

// What a trainer leaves is judged by the bridge, whoever ran it.
func TestGarbageIsNoResult(t *testing.T) {
	for what, spoil := range map[string]func(out string) error{
		"metrics that are no JSON": func(out string) error { return os.WriteFile(filepath.Join(out, "metrics.json"), []byte("{"), 0o644) },
		"no adapter":               func(out string) error { return os.RemoveAll(filepath.Join(out, "adapter")) },
		"a link out of the folder": func(out string) error { return os.Symlink("/etc/passwd", filepath.Join(out, "extra")) },
	} {
		p := newPlant(t)
		r := &trainer{dir: t.TempDir(), leave: whole(), spoil: spoil}
		p.submit(t, "rounds-a", KindRounds)
		p.settle(t, p.bridge(t, r, controllog.Alone(p.log)))
		st := p.log.State()
		if j := st.Jobs["rounds-a"]; j.State != control.JobQueued || j.Update.Error == "" || len(st.Models) != 0 {
			t.Errorf("%s: %+v, %d versions", what, j, len(st.Models))
		}
	}
}

// Each append is refused once and each answer lost once: no job runs twice, and all come to their end.
func TestTrainingSurvivesLostAppends(t *testing.T) {
	for _, fault := range []string{"refused", "answer lost"} {
		p := newPlant(t)
		seen := map[string]bool{}
		once := func(e control.Event) error {
			if seen[e.ID] {
				return nil
			}
			seen[e.ID] = true
			return errors.New(fault)
		}
		if fault == "refused" {
			p.log.Refuse(once)
		} else {
			p.log.Lose(once)
		}
		r := &trainer{dir: t.TempDir(), leave: whole()}
		s := p.bridge(t, r, controllog.Alone(p.log))
		p.submit(t, "rounds-a", KindRounds)
		p.submit(t, "reward-b", KindReward)
		for range 100 {
			_, _ = s.step(t.Context(), p.log)
		}
		st := p.log.State()
		if len(st.Models) != 2 || st.Jobs["rounds-a"].State != control.JobSucceeded || st.Jobs["reward-b"].State != control.JobSucceeded {
			t.Errorf("%s: %d versions, jobs %+v", fault, len(st.Models), st.Jobs)
		}
		if got := r.runs.Load(); got != 2 {
			t.Errorf("%s: %d runs of two jobs", fault, got)
		}
	}
}

// Two processes with the target trainer: one runs the job; when it is gone the other goes on, and what the first one
// still has to say is rejected.
func TestTwoTrainersRunAJobOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlant(t)
		r := &trainer{dir: t.TempDir(), leave: whole(), hold: time.Minute}
		pulse := &controltest.Pulse{}
		run := func(owner string) {
			k := controllog.NewLeases(p.log, pulse, owner, controllog.DefaultTTL, zerolog.Nop(), nil)
			h := k.Hold(control.RoleTrainer)
			s := p.bridge(t, r, h)
			s.now = time.Now
			go func() { _ = k.Run(t.Context()) }()
			go func() { _ = h.Run(t.Context()) }()
			go func() { _ = s.Run(t.Context()) }()
		}
		p.submit(t, "reward-a", KindReward)
		run("one")
		synctest.Wait()
		run("two")
		time.Sleep(30 * time.Second)
		if n := r.runs.Load(); n != 1 {
			t.Fatalf("the job runs %d times", n)
		}
		pulse.Cut("one", errors.New("cut off")) // in the middle of the job
		time.Sleep(5 * time.Minute)
		st := p.log.State()
		if j := st.Jobs["reward-a"]; j.State != control.JobSucceeded || j.Update.Attempt != 2 || len(st.Models) != 1 {
			t.Errorf("job %+v, %d versions", j, len(st.Models))
		}
		if r.most.Load() != 1 || st.Leases[control.RoleTrainer].Owner != "two" {
			t.Errorf("%d at once; lease %+v", r.most.Load(), st.Leases[control.RoleTrainer])
		}
	})
}

// S9: a trainer that cannot write to the control log says so, and is well again as soon as it can, in the hours of a job too.
func TestATrainerThatCannotWriteSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlant(t)
		p.submit(t, "rounds-1", KindRounds)
		p.log.Refuse(func(control.Event) error { return errors.New("no right to write") })
		s := p.bridge(t, &trainer{dir: t.TempDir(), leave: whole(), hold: 10 * time.Hour}, controllog.Alone(p.log))
		gate, work := telemetrytest.NewGate(nil)
		s.d.Work = work
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		if reason := gate.Await(t, false); !strings.Contains(reason, "no right to write") {
			t.Errorf("the reason is %q", reason)
		}
		p.log.Refuse(nil)
		gate.Await(t, true)
		if st := p.log.State().Jobs["rounds-1"].State; st != control.JobRunning {
			t.Errorf("the job is %s: it should run still", st)
		}
		cancel()
		<-ended
	})
}

// A job that somebody cancels is stopped at once, its end is not reported over the person's word, and a retry runs it again.
func TestACancelledJobIsStoppedAndMayBeRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlant(t)
		r := &trainer{dir: t.TempDir(), hold: time.Hour, leave: append([]string{"metrics.json"}, whole()...)}
		s := p.bridge(t, r, controllog.Alone(p.log))
		p.submit(t, "rounds-a", KindRounds)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(time.Minute)
		p.log.Put(t, control.JobCancelled, control.JobEntity("rounds-a"), nil)
		synctest.Wait()
		if n := r.busy.Load(); n != 0 {
			t.Errorf("%d jobs run after the cancel", n)
		}
		if j := p.log.State().Jobs["rounds-a"]; j.State != control.JobBroken || j.Update.Class != control.ClassCancelled {
			t.Errorf("cancelled: %+v", j)
		}
		time.Sleep(24 * time.Hour)
		if n := r.runs.Load(); n != 1 {
			t.Errorf("%d runs of a job that was cancelled", n)
		}
		p.log.Put(t, control.JobRetried, control.JobEntity("rounds-a"), nil)
		time.Sleep(2 * time.Hour)
		if j := p.log.State().Jobs["rounds-a"]; j.State != control.JobSucceeded || j.Update.Attempt != 2 {
			t.Errorf("retried: %+v", j)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
