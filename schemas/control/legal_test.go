package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// tested is a log with a champion "a", a treatment "b" in experiment "x", and a version "c" in shadow.
func tested(t testing.TB) *log {
	l := newLog(t)
	l.probed("a", "b", "c")
	l.promote("a")
	l.do(ExperimentCreated, ExperimentEntity("x"), Experiment{
		ID: "x", Logical: "prompt", Control: "a", Treatment: "b", Steps: []float64{0.1, 0.5},
	})
	return l
}

func (l *log) champion(want string) {
	l.t.Helper()
	if got := l.state.Routes["prompt"].Champion; got != want {
		l.t.Errorf("champion %q, want %q", got, want)
	}
}

func TestNothingBecomesChampionThatMayNotServe(t *testing.T) {
	l := newLog(t)
	route := RouteEntity("prompt")
	l.do(ModelRegistered, ModelEntity("r"), Model{Version: "r", Logical: "reward", Base: "base"})
	l.do(ModelRegistered, ModelEntity("adapter"), Model{Version: "adapter", Logical: "prompt", Base: "base"})
	l.model("base")
	promotion := func(v string) Promotion { return Promotion{Logical: "prompt", Version: v} }
	l.refuse(ErrInvalid, ModelPromoted, route, -1, promotion("adapter")) // not even as the first one
	l.promote("base")
	l.model("other base")
	for _, v := range []string{"adapter", "other base", "r", "none"} {
		l.refuse(ErrInvalid, ModelPromoted, route, -1, promotion(v))
		l.refuse(ErrInvalid, ModelRolledBack, route, -1, promotion(v))
	}
	l.move("r", ModelLoaded, ModelProbed)
	l.refuse(ErrInvalid, ModelPromoted, route, -1, promotion("r")) // probed, but of another logical model
	l.move("adapter", ModelLoaded, ModelProbed, ModelFailed)
	l.refuse(ErrInvalid, ModelPromoted, route, -1, promotion("adapter"))
	l.champion("base")
}

func TestModelMoves(t *testing.T) {
	all := append(slices.Clone(modelMoves[ModelFailed]), ModelFailed, "banana", "")
	for _, from := range all[:len(all)-2] {
		for _, to := range all {
			l := newLog(t)
			l.model("a")
			l.state.Models["a"].State = from
			err := l.try(l.event(ModelStateChanged, ModelEntity("a"), -1, ModelStateChange{State: to}))
			legal := map[string]bool{
				"fetched loaded": true, "loaded probed": true, "probed shadow": true, "retained drained": true, "drained unloaded": true,
			}[string(from)+" "+string(to)] || to == ModelFailed && from != ModelFailed
			if (err == nil) != legal || err != nil && !errors.Is(err, ErrInvalid) {
				t.Errorf("%s -> %q: %v", from, to, err)
			}
		}
	}
}

func TestJobMoves(t *testing.T) {
	for _, c := range []struct {
		from JobState
		typ  Type
		ok   bool
	}{
		{JobQueued, JobStarted, true}, {JobQueued, JobFinished, false}, {JobQueued, JobFailed, true},
		{JobRunning, JobStarted, true}, {JobRunning, JobFinished, true}, {JobRunning, JobFailed, true},
		{JobSucceeded, JobStarted, false}, {JobSucceeded, JobFinished, false}, {JobSucceeded, JobFailed, true},
		{JobBroken, JobStarted, false}, {JobBroken, JobFinished, false}, {JobBroken, JobFailed, false},
	} {
		l := newLog(t)
		l.do(JobSubmitted, JobEntity("j"), Job{ID: "j"})
		l.state.Jobs["j"].State = c.from
		if err := l.try(l.event(c.typ, JobEntity("j"), -1, JobUpdate{})); (err == nil) != c.ok {
			t.Errorf("%s on a job that is %s: %v", c.typ, c.from, err)
		}
	}
	l := newLog(t)
	l.do(JobSubmitted, JobEntity("j"), Job{ID: "j"})
	l.do(JobStarted, JobEntity("j"), JobUpdate{Attempt: 1})
	again := time.Unix(5000, 0).UTC()
	l.do(JobFailed, JobEntity("j"), JobUpdate{Attempt: 1, Class: "out_of_memory", RetryAt: again})
	if j := l.state.Jobs["j"]; j.State != JobQueued || !j.NotBefore.Equal(again) || j.Update.Class != "out_of_memory" {
		t.Errorf("a job to be tried again: %+v", j)
	}
	l.do(JobStarted, JobEntity("j"), JobUpdate{Attempt: 2})
	l.do(JobFinished, JobEntity("j"), JobUpdate{Attempt: 2})
	l.do(ModelRegistered, ModelEntity("m"), Model{Version: "m", Job: "j"})
	l.refuse(ErrInvalid, JobFailed, JobEntity("j"), -1, JobUpdate{}) // something was made of it
}

// One command moves the experiment, the route and the versions, whoever gives it, and all their versions count.
func TestADecisionIsOneTransition(t *testing.T) {
	entity := ExperimentEntity("x")
	t.Run("promote", func(t *testing.T) {
		l := tested(t)
		before := l.state.Clone()
		l.do(ExperimentDecided, entity, Decision{Outcome: Promote, Rule: "lift"})
		l.champion("b")
		if a, b := l.state.Models["a"].State, l.state.Models["b"].State; a != ModelRetained || b != ModelChampion {
			t.Errorf("a is %s, b is %s", a, b)
		}
		for _, e := range []string{entity, RouteEntity("prompt"), ModelEntity("a"), ModelEntity("b")} {
			if got := l.state.Versions[e] - before.Versions[e]; got != 1 {
				t.Errorf("the version of %s went up by %d", e, got)
			}
		}
		// The guard comes too late, and a way back is one command too.
		l.refuse(ErrInvalid, ExperimentDecided, entity, -1, Decision{Outcome: RollBack})
		l.do(ModelRolledBack, RouteEntity("prompt"), Promotion{Logical: "prompt", Version: "a"})
		l.champion("a")
	})
	t.Run("roll back", func(t *testing.T) {
		l := tested(t)
		l.do(ExperimentDecided, entity, Decision{Outcome: RollBack, Rule: "guard"})
		l.champion("a")
		if got := l.state.Models["b"].State; got != ModelRetained {
			t.Errorf("the treatment is %s", got)
		}
		l.refuse(ErrInvalid, ExperimentDecided, entity, -1, Decision{Outcome: Promote}) // a person's, too late
		l.champion("a")
	})
	t.Run("a treatment is promoted by its experiment only", func(t *testing.T) {
		l := tested(t)
		l.refuse(ErrInvalid, ModelPromoted, RouteEntity("prompt"), -1, Promotion{Logical: "prompt", Version: "b"})
		l.champion("a")
	})
	t.Run("another champion meanwhile", func(t *testing.T) {
		l := tested(t)
		l.promote("c")
		l.refuse(ErrConflict, ExperimentDecided, entity, -1, Decision{Outcome: Promote})
		l.do(ExperimentDecided, entity, Decision{Outcome: Inconclusive})
		l.champion("c")
	})
	t.Run("a treatment that failed", func(t *testing.T) {
		l := tested(t)
		l.move("b", ModelFailed)
		l.refuse(ErrInvalid, ExperimentDecided, entity, -1, Decision{Outcome: Promote})
		l.do(ExperimentDecided, entity, Decision{Outcome: RollBack})
		if got := l.state.Models["b"].State; got != ModelFailed {
			t.Errorf("a failed treatment is %s", got)
		}
	})
	t.Run("no end at all", func(t *testing.T) {
		l := tested(t)
		for _, o := range []Outcome{Hold, "", "banana"} {
			l.refuse(ErrInvalid, ExperimentDecided, entity, -1, Decision{Outcome: o})
		}
	})
}

func TestExperimentsAreOfVersionsThatCanAnswer(t *testing.T) {
	l := newLog(t)
	l.probed("a", "b")
	l.promote("a")
	l.model("raw")
	l.do(ModelRegistered, ModelEntity("r"), Model{Version: "r", Logical: "reward"})
	for _, x := range []Experiment{
		{Control: "a", Treatment: "raw"}, {Control: "a", Treatment: "r"}, {Control: "a", Treatment: "none"}, {Control: "a", Treatment: "a"},
		{Control: "raw", Treatment: "b"}, {Control: "b", Treatment: "a"}, {Control: "a", Treatment: "b", Steps: make([]float64, MaxSteps+1)},
	} {
		x.ID, x.Logical = "x", "prompt"
		if x.Steps == nil {
			x.Steps = []float64{0.5}
		}
		l.refuse(ErrInvalid, ExperimentCreated, ExperimentEntity("x"), -1, x)
	}
	l.do(ExperimentCreated, ExperimentEntity("d"), Experiment{
		ID: "d", Logical: "prompt", Control: "a", Treatment: "raw", Steps: []float64{0.5}, Draft: true,
	})
	l.refuse(ErrInvalid, ExperimentStarted, ExperimentEntity("d"), -1, Start{})
	l.move("raw", ModelLoaded, ModelProbed)
	l.do(ExperimentStarted, ExperimentEntity("d"), Start{})
	l.refuse(ErrInvalid, ExperimentStepped, ExperimentEntity("d"), -1, Step{Index: 0, Share: 0.9}) // not the step's share
}

// Commands from before there was a format fold as they did then; from the first newer one on they are refused.
func TestOldLogsFoldByTheRulesOfTheirTime(t *testing.T) {
	l := newLog(t)
	old := func(typ Type, entity string, data any) {
		t.Helper()
		e := l.event(typ, entity, -1, data)
		e.Format = 0
		if err := l.try(e); err != nil {
			t.Fatal(err)
		}
	}
	l.state.Format = 0
	for _, v := range []string{"a", "b"} {
		old(ModelRegistered, ModelEntity(v), Model{Version: v, Logical: "prompt", Base: "base"})
		old(ModelStateChanged, ModelEntity(v), ModelStateChange{State: ModelShadow})
	}
	old(ModelPromoted, RouteEntity("prompt"), Promotion{Logical: "prompt", Version: "a"})
	old(ExperimentCreated, ExperimentEntity("x"), Experiment{ID: "x", Logical: "prompt", Control: "a", Treatment: "b", Steps: []float64{0.5}})
	old(ModelPromoted, RouteEntity("prompt"), Promotion{Logical: "prompt", Version: "b"}) // a decision was two commands
	if got := l.state.Versions[ModelEntity("b")]; got != 2 {
		t.Errorf("version %d of b, want what its writers counted", got)
	}
	if !l.state.Models["b"].Proved {
		t.Error("what has served is not known as proved")
	}
	// An instance stops here and starts again with this release: it ends what was begun.
	l.do(ExperimentDecided, ExperimentEntity("x"), Decision{Outcome: Promote})
	l.champion("b")
	e := l.event(ModelStateChanged, ModelEntity("a"), -1, ModelStateChange{State: ModelShadow})
	e.Format = 0
	err := l.try(e)
	if r, ok := Rejected(err); !ok || r.Reason != Outdated || !errors.Is(err, ErrOutdated) {
		t.Errorf("a command of an older release: %v", err)
	}
}

// A reader that meets a newer release's commands counts them as that one does, says that it is behind, and rejects what
// the newer one rejects.
func TestAnOlderReaderOfANewerLog(t *testing.T) {
	l := tested(t)
	newer := func(typ Type, entity string, expect int64, data any) error {
		e := l.event(typ, entity, expect, data)
		e.Format = Format + 1
		return l.try(e)
	}
	entity := ExperimentEntity("x")
	if err := newer("experiment.annotated", entity, 1, map[string]string{"text": "!"}); err != nil {
		t.Fatal(err)
	}
	x := l.state.Experiments["x"]
	if got := l.state.Versions[entity]; got != 2 || len(x.Trail) != 2 || x.Trail[1].Version != 2 {
		t.Errorf("version %d, trail %+v", got, x.Trail)
	}
	if err := newer(ExperimentStepped, entity, 2, Step{Index: 1, Share: 0.5}); err != nil || x.Step.Index != 1 {
		t.Errorf("a known command of a newer release: %v, step %+v", err, x.Step)
	}
	if err := newer("experiment.annotated", entity, 1, nil); !errors.Is(err, ErrConflict) {
		t.Errorf("an unknown command on an old version: %v", err)
	}
	if b := l.state.Behind; b == nil || b.Commands != 3 || b.Format != Format+1 || b.Type != "experiment.annotated" {
		t.Errorf("behind: %+v", b)
	}
	l.refuse(ErrOutdated, ExperimentPaused, entity, -1, Pause{}) // our own: it decides on half the truth
	l.refuse(ErrOutdated, "model.painted", ModelEntity("a"), -1, nil)
}

func TestWhatACommandCarriesIsBounded(t *testing.T) {
	l := tested(t)
	long := strings.Repeat("é", MaxText)
	if _, err := NewEvent("i", ExperimentPaused, ExperimentEntity("x"), -1, "ann", long, time.Now(), Pause{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a long note: %v", err)
	}
	e := l.event(ExperimentPaused, ExperimentEntity("x"), -1, Pause{})
	e.Note = long
	if err := l.try(e); !errors.Is(err, ErrInvalid) {
		t.Errorf("a long note at the fold: %v", err)
	}
	l.refuse(ErrInvalid, ModelStateChanged, ModelEntity("b"), -1, ModelStateChange{State: ModelFailed, Reason: long})
	l.refuse(ErrInvalid, ModelRegistered, ModelEntity("big"), -1, Model{Version: "big", Job: strings.Repeat("x", MaxData)})
	l.do(ModelStateChanged, ModelEntity("c"), ModelStateChange{State: ModelFailed, Reason: Clip(long)})
	if got := l.state.Models["c"].Reason; len(got) > MaxText || !strings.HasSuffix(got, "é [cut]") {
		t.Errorf("cut to %d bytes, ends with %q", len(got), got[len(got)-10:])
	}
	for i := range 2 * MaxTrail {
		l.do([]Type{ExperimentPaused, ExperimentResumed}[i%2], ExperimentEntity("x"), Pause{})
	}
	trail := l.state.Experiments["x"].Trail
	if len(trail) != MaxTrail || trail[len(trail)-1].Version != 2*MaxTrail+1 || trail[0].Version != MaxTrail+2 {
		t.Errorf("a trail of %d, %d to %d", len(trail), trail[0].Version, trail[len(trail)-1].Version)
	}
	for i := 1; i < MaxVisits; i++ {
		l.do(ExperimentStepped, ExperimentEntity("x"), Step{Index: i % 2, Share: []float64{0.1, 0.5}[i%2]})
	}
	l.refuse(ErrInvalid, ExperimentStepped, ExperimentEntity("x"), -1, Step{Index: 0, Share: 0.1})
}

func TestLeases(t *testing.T) {
	l := newLog(t)
	entity := LeaseEntity(RoleSwap)
	claim := func(owner string) Lease { return Lease{Role: RoleSwap, Owner: owner} }
	l.refuse(ErrInvalid, LeaseAcquired, entity, -1, claim("a")) // on which version?
	l.refuse(ErrInvalid, LeaseAcquired, entity, 0, claim(""))
	l.refuse(ErrInvalid, LeaseAcquired, LeaseEntity(RoleTrainer), 0, claim("a"))
	if err := l.try(l.event(LeaseAcquired, entity, 0, claim("a"))); err != nil {
		t.Fatal(err)
	}
	l.refuse(ErrConflict, LeaseAcquired, entity, 0, claim("b"))
	l.model("m")
	by := func(role Role, epoch int64, typ Type, entity string, data any) error {
		e := l.event(typ, entity, -1, data)
		e.Role, e.Epoch = role, epoch
		return l.try(e)
	}
	load := func(epoch int64) error {
		return by(RoleSwap, epoch, ModelStateChanged, ModelEntity("m"), ModelStateChange{State: ModelLoaded})
	}
	if err := l.try(l.event(LeaseAcquired, entity, 1, claim("b"))); err != nil {
		t.Fatal(err)
	}
	if err := load(1); !errors.Is(err, ErrFenced) {
		t.Errorf("a command of the earlier epoch: %v", err)
	}
	if err := by(RoleTrainer, 2, ModelStateChanged, ModelEntity("m"), ModelStateChange{State: ModelLoaded}); !errors.Is(err, ErrFenced) {
		t.Errorf("a command of a role that nobody holds: %v", err)
	}
	if err := load(2); err != nil {
		t.Error(err)
	}
	if err := by(RoleSwap, 1, LeaseReleased, entity, claim("a")); !errors.Is(err, ErrFenced) {
		t.Errorf("released by the earlier holder: %v", err)
	}
	l.refuse(ErrInvalid, LeaseReleased, entity, -1, claim("b"))
	if err := by(RoleSwap, 2, LeaseReleased, entity, claim("b")); err != nil {
		t.Error(err)
	}
	if err := load(2); !errors.Is(err, ErrFenced) {
		t.Errorf("after the release: %v", err)
	}
}

// long is a log of n commands: forced units of one experiment above all, whose fold was quadratic.
func long(t testing.TB, n int) []Event {
	t.Helper()
	l := newLog(t)
	rng := rand.New(rand.NewPCG(1, 2))
	events := make([]Event, 0, n)
	add := func(typ Type, entity string, data any) {
		e := l.event(typ, entity, -1, data)
		e.ID = fmt.Sprint(len(events))
		events = append(events, e)
	}
	for _, v := range []string{"a", "b"} {
		add(ModelRegistered, ModelEntity(v), Model{Version: v, Logical: "prompt"})
		for _, s := range []ModelState{ModelLoaded, ModelProbed, ModelShadow} {
			add(ModelStateChanged, ModelEntity(v), ModelStateChange{State: s})
		}
	}
	add(ModelPromoted, RouteEntity("prompt"), Promotion{Logical: "prompt", Version: "a"})
	add(ExperimentCreated, ExperimentEntity("x"), Experiment{ID: "x", Logical: "prompt", Control: "a", Treatment: "b", Steps: []float64{0.5}})
	for len(events) < n {
		variant := []string{"control", "treatment", ""}[rng.IntN(3)]
		add(ExperimentForced, ExperimentEntity("x"), Forced{Unit: fmt.Sprint("u", rng.IntN(900)), Variant: variant})
	}
	return events
}

// Twice the commands take twice the memory to fold, not four times: nothing is copied again for each of them.
func TestTheFoldIsLinear(t *testing.T) {
	allocated := func(n int) float64 {
		events := long(t, n)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s := NewState()
		for i, e := range events {
			if _, err := s.Apply(int64(i), e); err != nil {
				t.Fatal(err)
			}
		}
		runtime.ReadMemStats(&after)
		return float64(after.TotalAlloc-before.TotalAlloc) / float64(n)
	}
	few, many := allocated(2_000), allocated(20_000)
	if many > 1.5*few || many > 4096 {
		t.Errorf("%.0f bytes a command for 2,000 commands, %.0f for 20,000", few, many)
	}
}

// A state that was read from a snapshot goes on as the one that folded everything, ids included.
func TestASnapshotIsTheStateItself(t *testing.T) {
	events := long(t, 3000)
	at := 1700
	whole := NewState()
	for i, e := range events[:at] {
		if _, err := whole.Apply(int64(i), e); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := whole.Snapshot("topic")
	if err != nil {
		t.Fatal(err)
	}
	of, read, err := ReadSnapshot(raw)
	if err != nil || of != "topic" {
		t.Fatal(of, err)
	}
	for i, e := range slices.Concat(events[at-5:at], events[at:]) { // some come again
		a, errA := whole.Apply(int64(at+i), e)
		b, errB := read.Apply(int64(at+i), e)
		if a != b || fmt.Sprint(errA) != fmt.Sprint(errB) || i < 5 && a != Repeated {
			t.Fatalf("command %d: %q %v, and after the snapshot %q %v", i, a, errA, b, errB)
		}
	}
	one, _ := json.Marshal(whole)
	two, _ := json.Marshal(read)
	if diff := cmp.Diff(string(one), string(two)); diff != "" {
		t.Error(diff)
	}
	whole.Format = Format + 1
	if raw, err = whole.Snapshot("topic"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ReadSnapshot(raw); !errors.Is(err, ErrBehind) {
		t.Errorf("a snapshot of a newer release: %v", err)
	}
}

func BenchmarkFold(b *testing.B) {
	events := long(b, 100_000)
	raw := make([][]byte, len(events))
	for i, e := range events {
		raw[i], _ = json.Marshal(e)
	}
	for b.Loop() {
		s := NewState()
		for i := range raw {
			var e Event
			if err := json.Unmarshal(raw[i], &e); err != nil {
				b.Fatal(err)
			}
			if _, err := s.Apply(int64(i), e); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(len(raw)*b.N)/b.Elapsed().Seconds(), "commands/s")
}
