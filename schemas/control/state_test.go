package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// at folds commands one after the other, at offsets 0, 1, 2...
type log struct {
	t     testing.TB
	state *State
	n     int64
}

func newLog(t testing.TB) *log { return &log{t: t, state: NewState()} }

func (l *log) event(typ Type, entity string, expect int64, data any) Event {
	l.t.Helper()
	e, err := NewEvent(fmt.Sprint("e", l.n), typ, entity, expect, "test", "note", time.Unix(1000+l.n, 0), data)
	if err != nil {
		l.t.Fatal(err)
	}
	return e
}

func (l *log) try(e Event) error {
	_, err := l.state.Apply(l.n, e)
	l.n++
	return err
}

func (l *log) do(typ Type, entity string, data any) {
	l.t.Helper()
	if err := l.try(l.event(typ, entity, -1, data)); err != nil {
		l.t.Fatal(err)
	}
}

func (l *log) refuse(want error, typ Type, entity string, expect int64, data any) {
	l.t.Helper()
	before := l.state.Clone()
	err := l.try(l.event(typ, entity, expect, data))
	if !errors.Is(err, want) {
		l.t.Fatalf("%s on %s: want %v, got %v", typ, entity, want, err)
	}
	before.Offset, before.Format = l.state.Offset, l.state.Format
	if diff := cmp.Diff(before, l.state, cmp.AllowUnexported(State{}, seen{})); diff != "" {
		l.t.Fatalf("a rejected %s changed the state: %s", typ, diff)
	}
}

func (l *log) model(version string) {
	l.t.Helper()
	l.do(ModelRegistered, ModelEntity(version), Model{Version: version, Logical: "prompt"})
}

// probed registers versions and brings them through their probe.
func (l *log) probed(versions ...string) {
	l.t.Helper()
	for _, v := range versions {
		l.model(v)
		l.move(v, ModelLoaded, ModelProbed, ModelShadow)
	}
}

func (l *log) move(version string, states ...ModelState) {
	l.t.Helper()
	for _, s := range states {
		l.do(ModelStateChanged, ModelEntity(version), ModelStateChange{State: s})
	}
}

func (l *log) promote(version string) {
	l.t.Helper()
	l.do(ModelPromoted, RouteEntity("prompt"), Promotion{Logical: "prompt", Version: version})
}

func TestPromotionAndRollBack(t *testing.T) {
	l := newLog(t)
	l.model("a")
	l.promote("a")
	l.probed("b")
	l.promote("b")
	if got, want := l.state.Routes["prompt"], (Route{Champion: "b", Previous: "a", Since: time.Unix(1006, 0).UTC()}); got != want {
		t.Fatalf("route %+v, want %+v", got, want)
	}
	if a, b := l.state.Models["a"].State, l.state.Models["b"].State; a != ModelRetained || b != ModelChampion {
		t.Fatalf("a is %s, b is %s", a, b)
	}
	l.promote("b") // again: the way back must stay
	if got := l.state.Routes["prompt"].Previous; got != "a" {
		t.Fatalf("promoting the champion again left %q as the way back", got)
	}
	l.do(ModelRolledBack, RouteEntity("prompt"), Promotion{Logical: "prompt", Version: "a", Previous: "b"})
	if got := l.state.Routes["prompt"]; got.Champion != "a" || got.Previous != "b" {
		t.Fatalf("rolled back to %+v", got)
	}
	l.refuse(ErrInvalid, ModelPromoted, RouteEntity("prompt"), -1, Promotion{Logical: "prompt", Version: "none"})
	l.refuse(ErrInvalid, ModelRegistered, ModelEntity("a"), -1, Model{Version: "a", Logical: "prompt"})
	l.refuse(ErrInvalid, ModelStateChanged, ModelEntity("none"), -1, ModelStateChange{State: ModelLoaded})
}

func TestVersionsAreComparedAndCounted(t *testing.T) {
	l := newLog(t)
	l.model("a")
	entity := ModelEntity("a")
	l.refuse(ErrConflict, ModelStateChanged, entity, 0, ModelStateChange{State: ModelLoaded})
	if err := l.try(l.event(ModelStateChanged, entity, 1, ModelStateChange{State: ModelLoaded})); err != nil {
		t.Fatal(err)
	}
	l.refuse(ErrConflict, ModelStateChanged, entity, 1, ModelStateChange{State: ModelProbed})
	if l.state.Versions[entity] != 2 {
		t.Fatalf("version %d, want 2", l.state.Versions[entity])
	}
}

func TestACommandSentTwiceIsOne(t *testing.T) {
	l := newLog(t)
	l.model("a")
	e := l.event(ModelStateChanged, ModelEntity("a"), 1, ModelStateChange{State: ModelLoaded})
	for _, want := range []Answer{Applied, Repeated} {
		if got, err := l.state.Apply(l.n, e); err != nil || got != want {
			t.Fatalf("answer %q, %v, want %q", got, err, want)
		}
	}
	if v := l.state.Versions[ModelEntity("a")]; v != 2 {
		t.Fatalf("version %d, want 2", v)
	}
	e.ID = ""
	if err := l.try(e); !errors.Is(err, ErrInvalid) {
		t.Fatalf("a command without an id: %v", err)
	}
}

// A command must name the entity that it changes: otherwise its version would guard something else.
func TestEntityMustMatch(t *testing.T) {
	l := newLog(t)
	l.model("a")
	l.refuse(ErrInvalid, ModelRegistered, ModelEntity("x"), -1, Model{Version: "b", Logical: "prompt"})
	l.refuse(ErrInvalid, ModelPromoted, ModelEntity("a"), -1, Promotion{Logical: "prompt", Version: "a"})
	l.refuse(ErrInvalid, ExperimentCreated, ExperimentEntity("x"), -1, Experiment{ID: "e", Steps: []float64{1}})
	l.refuse(ErrInvalid, JobSubmitted, JobEntity("x"), -1, Job{ID: "j"})
	l.refuse(ErrInvalid, DatasetBuilt, DatasetEntity("x"), -1, Dataset{Digest: "d"})
	l.refuse(ErrInvalid, BreakerTripped, BreakerEntity("x"), -1, Breaker{Slice: "s"})
	l.refuse(ErrInvalid, ModelStateChanged, JobEntity("a"), -1, ModelStateChange{State: ModelLoaded})
	l.refuse(ErrInvalid, "model.painted", ModelEntity("a"), -1, struct{}{})
	e := l.event(JobSubmitted, JobEntity("j"), -1, nil)
	e.Data = json.RawMessage("{")
	if err := l.try(e); !errors.Is(err, ErrInvalid) {
		t.Fatalf("unreadable data: %v", err)
	}
}

func TestExperimentLife(t *testing.T) {
	l := newLog(t)
	entity := ExperimentEntity("x")
	l.probed("a", "b", "c")
	l.promote("a")
	l.refuse(ErrInvalid, ExperimentCreated, entity, -1, Experiment{ID: "x"})
	l.do(ExperimentCreated, entity, Experiment{
		ID: "x", Logical: "prompt", Control: "a", Treatment: "b", Steps: []float64{0.01, 0.5, 1}, Created: time.Unix(2, 0),
	})
	l.refuse(ErrInvalid, ExperimentCreated, entity, -1, Experiment{ID: "x", Steps: []float64{1}})
	if got := l.state.Experiments["x"].Step; got != (Step{Index: 0, Share: 0.01}) {
		t.Fatalf("first step %+v", got)
	}
	l.do(ExperimentStepped, entity, Step{Index: 1, Share: 0.5})
	l.refuse(ErrInvalid, ExperimentStepped, entity, -1, Step{Index: 3, Share: 1})
	l.refuse(ErrInvalid, ExperimentStepped, ExperimentEntity("y"), -1, Step{Index: 1, Share: 0.5})
	l.do(ExperimentCreated, ExperimentEntity("w"), Experiment{
		ID: "w", Logical: "prompt", Control: "a", Treatment: "c", Steps: []float64{1}, Created: time.Unix(1, 0),
	})
	var running []string
	for _, e := range l.state.Running("prompt") {
		running = append(running, e.ID)
	}
	if diff := cmp.Diff([]string{"w", "x"}, running); diff != "" {
		t.Error(diff)
	}
	l.do(ExperimentDecided, entity, Decision{Outcome: Promote, Rule: "r"})
	if x := l.state.Experiments["x"]; x.Running() || x.Decision.Outcome != Promote || len(l.state.Running("prompt")) != 1 {
		t.Fatalf("decided: %+v", x)
	}
	l.refuse(ErrInvalid, ExperimentStepped, entity, -1, Step{Index: 2, Share: 1})
	l.refuse(ErrInvalid, ExperimentDecided, entity, -1, Decision{Outcome: RollBack})
}

func TestJobLife(t *testing.T) {
	l := newLog(t)
	l.refuse(ErrInvalid, JobStarted, JobEntity("j"), -1, JobUpdate{})
	l.do(JobSubmitted, JobEntity("j"), Job{ID: "j", Kind: "reward", Spec: json.RawMessage(`{}`)})
	l.refuse(ErrInvalid, JobSubmitted, JobEntity("j"), -1, Job{ID: "j"})
	l.do(JobStarted, JobEntity("j"), JobUpdate{Attempt: 1})
	l.do(JobFailed, JobEntity("j"), JobUpdate{Attempt: 1, Class: "oom"})
	if j := l.state.Jobs["j"]; j.State != JobBroken || j.Update.Class != "oom" || !j.Finished.After(j.Started) {
		t.Fatalf("%+v", j)
	}
	l.refuse(ErrInvalid, JobFinished, JobEntity("j"), -1, JobUpdate{})
}

func TestBreakersAndDatasets(t *testing.T) {
	l := newLog(t)
	l.do(BreakerTripped, BreakerEntity("s"), Breaker{Slice: "s", Reason: "stale"})
	l.do(DatasetBuilt, DatasetEntity("d"), Dataset{Digest: "d", Pairs: 3})
	if l.state.Breakers["s"].Reason != "stale" || l.state.Datasets["d"].Pairs != 3 {
		t.Fatal(l.state)
	}
	l.do(BreakerReset, BreakerEntity("s"), Breaker{Slice: "s"})
	if len(l.state.Breakers) != 0 {
		t.Fatal("still tripped")
	}
}

// Every reader folds to the same state, and a copy is not touched by what is folded later.
func TestFoldIsDeterministicAndClonesAreApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		one, two := NewState(), NewState()
		var copies []*State
		var want [][]byte
		for i := range rapid.IntRange(0, 60).Draw(t, "n") {
			v := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "version")
			data := map[Type]struct {
				entity string
				data   any
			}{
				ModelRegistered:   {ModelEntity(v), Model{Version: v, Logical: "p"}},
				ModelStateChanged: {ModelEntity(v), ModelStateChange{State: rapid.SampledFrom(servedStates).Draw(t, "state")}},
				ModelPromoted:     {RouteEntity("p"), Promotion{Logical: "p", Version: v}},
				ExperimentCreated: {ExperimentEntity(v), Experiment{ID: v, Logical: "p", Control: "a", Treatment: v, Steps: []float64{0.1, 1}}},
				ExperimentStepped: {ExperimentEntity(v), Step{Index: 1, Share: 1}},
				ExperimentDecided: {ExperimentEntity(v), Decision{Outcome: Promote}},
				JobSubmitted:      {JobEntity(v), Job{ID: v}},
				JobFinished:       {JobEntity(v), JobUpdate{Metrics: map[string]any{"x": 1.0}}},
			}
			types := []Type{
				ModelRegistered,
				ModelStateChanged,
				ModelPromoted,
				ExperimentCreated,
				ExperimentStepped,
				ExperimentDecided,
				JobSubmitted,
				JobFinished,
			}
			typ := rapid.SampledFrom(types).Draw(t, "type")
			e, err := NewEvent(
				fmt.Sprint(rapid.IntRange(0, 40).Draw(t, "id")),
				typ,
				data[typ].entity,
				rapid.Int64Range(-1, 3).Draw(t, "expect"),
				"",
				"",
				time.Unix(int64(i), 0),
				data[typ].data,
			)
			if err != nil {
				t.Fatal(err)
			}
			copies = append(copies, one.Clone())
			text, _ := json.Marshal(one)
			want = append(want, text)
			a, errA := one.Apply(int64(i), e)
			b, errB := two.Apply(int64(i), e)
			if fmt.Sprint(a, errA) != fmt.Sprint(b, errB) {
				t.Fatalf("two readers disagree: %v %v, %v %v", a, errA, b, errB)
			}
		}
		if diff := cmp.Diff(one, two, cmp.AllowUnexported(State{}, seen{})); diff != "" {
			t.Fatal(diff)
		}
		for i, c := range copies {
			if text, _ := json.Marshal(c); string(text) != string(want[i]) {
				t.Fatalf("the copy of offset %d has changed: %s, was %s", i, text, want[i])
			}
		}
	})
}

// A draft assigns nothing until it is started; pauses and forced units are commands of their own; each applied command
// is in the trail under the version that it made.
func TestDraftsPausesAndTheTrail(t *testing.T) {
	l := newLog(t)
	l.model("a")
	l.model("b")
	l.promote("a")
	l.move("b", ModelLoaded, ModelProbed)
	entity := ExperimentEntity("x")
	l.do(
		ExperimentCreated,
		entity,
		Experiment{ID: "x", Logical: "prompt", Control: "a", Treatment: "b", Steps: []float64{0.1, 0.5}, Draft: true},
	)
	x := l.state.Experiments["x"]
	if x.Running() || x.Phase() != PhaseDraft || len(l.state.Running("prompt")) != 0 || l.state.Models["b"].State != ModelProbed {
		t.Fatalf("a draft runs: %+v, b is %s", x, l.state.Models["b"].State)
	}
	for _, typ := range []Type{ExperimentStepped, ExperimentPaused, ExperimentResumed} {
		l.refuse(ErrInvalid, typ, entity, -1, struct{}{})
	}
	l.do(ExperimentStarted, entity, Start{AtMS: 77})
	if !x.Running() || x.History[0].AtMS != 77 || x.Step.AtMS != 77 || l.state.Models["b"].State != ModelRamp {
		t.Fatalf("started: %+v", x)
	}
	l.refuse(ErrInvalid, ExperimentStarted, entity, -1, Start{})
	l.refuse(ErrInvalid, ExperimentResumed, entity, -1, Pause{})
	l.do(ExperimentPaused, entity, Pause{})
	l.refuse(ErrInvalid, ExperimentPaused, entity, -1, Pause{})
	if x.Phase() != PhasePaused || !x.Running() {
		t.Fatalf("paused: %+v", x)
	}
	l.do(ExperimentResumed, entity, Pause{})
	before := l.state.Clone()
	l.do(ExperimentForced, entity, Forced{Unit: "u", Variant: "treatment"})
	if len(before.Experiments["x"].Forced) != 0 || x.Forced["u"] != "treatment" {
		t.Fatalf("forced: %v, and in a copy made before: %v", x.Forced, before.Experiments["x"].Forced)
	}
	l.refuse(ErrInvalid, ExperimentForced, entity, -1, Forced{Unit: "u", Variant: "best"})
	l.refuse(ErrInvalid, ExperimentForced, entity, -1, Forced{Variant: "control"})
	l.do(ExperimentForced, entity, Forced{Unit: "u"})
	l.do(ExperimentDecided, entity, Decision{Outcome: RollBack, Rule: "r"})
	var got []string
	for i, c := range x.Trail {
		if c.Version != int64(i+1) || c.Actor != "test" || c.Note != "note" {
			t.Errorf("change %+v", c)
		}
		got = append(got, string(c.Type))
	}
	want := []string{
		"experiment.created",
		"experiment.started",
		"experiment.paused",
		"experiment.resumed",
		"experiment.forced",
		"experiment.forced",
		"experiment.decided",
	}
	if diff := cmp.Diff(want, got); diff != "" || l.state.Versions[entity] != int64(len(want)) || x.Phase() != PhaseDecided ||
		len(x.Forced) != 0 {
		t.Error(diff, l.state.Versions[entity], x.Forced)
	}
}

// A draft that is thrown away leaves a champion what it is.
func TestADroppedDraftOfAChampion(t *testing.T) {
	l := newLog(t)
	l.probed("a", "b")
	l.promote("a")
	l.do(
		ExperimentCreated,
		ExperimentEntity("x"),
		Experiment{ID: "x", Logical: "prompt", Control: "a", Treatment: "b", Steps: []float64{0.1}, Draft: true},
	)
	l.promote("b")
	l.do(ExperimentDecided, ExperimentEntity("x"), Decision{Outcome: RollBack, Rule: "manual"})
	if got := l.state.Models["b"].State; got != ModelChampion {
		t.Errorf("the champion is %s", got)
	}
}

func TestHoldouts(t *testing.T) {
	l := newLog(t)
	l.model("a")
	entity := HoldoutEntity("prompt")
	h := Holdout{Logical: "prompt", Share: 0.1, Seed: "s", Version: "a"}
	l.do(HoldoutSet, entity, h)
	if l.state.Holdouts["prompt"] != h {
		t.Fatal(l.state.Holdouts)
	}
	l.refuse(ErrInvalid, HoldoutSet, entity, -1, Holdout{Logical: "prompt", Share: 1})
	l.refuse(ErrInvalid, HoldoutSet, entity, -1, Holdout{Logical: "prompt", Share: 0.1, Version: "none"})
	l.refuse(ErrInvalid, HoldoutSet, HoldoutEntity("image"), -1, h)
	l.do(HoldoutSet, entity, Holdout{Logical: "prompt"})
	if len(l.state.Holdouts) != 0 {
		t.Error("still there")
	}
}

func TestSlots(t *testing.T) {
	whole := Experiment{Logical: "prompt"}
	for _, c := range []struct {
		a, b Slot
		want bool
	}{
		{Slot{"l", 0, 0.5}, Slot{"l", 0.5, 1}, false},
		{Slot{"l", 0, 0.5}, Slot{"l", 0.4, 1}, true},
		{Slot{"l", 0, 0.5}, Slot{"m", 0.5, 1}, true}, // other hashes
		{whole.InSlot(), Slot{"prompt", 0.9, 1}, true},
	} {
		if c.a.Overlaps(c.b) != c.want || c.b.Overlaps(c.a) != c.want {
			t.Errorf("%+v and %+v: want %v", c.a, c.b, c.want)
		}
	}
}

func TestCreativesAreBlockedAndComeBack(t *testing.T) {
	l := newLog(t)
	entity := CreativeEntity("c-1")
	l.refuse(ErrInvalid, CreativeUnblocked, entity, -1, CreativeBlock{Creative: "c-1"})
	l.refuse(ErrInvalid, CreativeBlocked, CreativeEntity("c-2"), -1, CreativeBlock{Creative: "c-1"})
	l.refuse(ErrInvalid, CreativeBlocked, CreativeEntity(""), -1, CreativeBlock{})
	l.do(CreativeBlocked, entity, CreativeBlock{Creative: "c-1"})
	if b := l.state.Blocked["c-1"]; b.Actor != "test" || b.Note != "note" || b.Since.IsZero() {
		t.Errorf("%+v", b)
	}
	l.refuse(ErrInvalid, CreativeBlocked, entity, -1, CreativeBlock{Creative: "c-1"})
	l.refuse(ErrConflict, CreativeUnblocked, entity, 0, CreativeBlock{Creative: "c-1"})
	view := l.state.View()
	l.do(CreativeUnblocked, entity, CreativeBlock{Creative: "c-1"})
	if len(l.state.Blocked) != 0 || len(view.Blocked) != 1 {
		t.Errorf("%v, and the copy of before %v", l.state.Blocked, view.Blocked)
	}
	for i := range MaxBlocks {
		l.state.Blocked[fmt.Sprint(i)] = Blocked{}
	}
	l.refuse(ErrInvalid, CreativeBlocked, entity, -1, CreativeBlock{Creative: "c-1"})
}

// A person ends a job and has it run again: the cycle fails, and goes on where it was. Attempts are counted on.
func TestAJobIsCancelledAndRetried(t *testing.T) {
	l := newLog(t)
	entity := JobEntity("rounds-a")
	l.refuse(ErrInvalid, JobCancelled, entity, -1, nil)
	l.do(JobSubmitted, entity, Job{ID: "rounds-a", Kind: "rounds"})
	l.refuse(ErrInvalid, JobRetried, entity, -1, nil)
	l.do(JobStarted, entity, JobUpdate{Attempt: 1})
	l.do(JobCancelled, entity, nil)
	j := l.state.Jobs["rounds-a"]
	if want := (JobUpdate{Attempt: 1, Class: ClassCancelled, Error: "by test: note"}); j.State != JobBroken || j.Finished.IsZero() ||
		!reflect.DeepEqual(j.Update, want) {
		t.Errorf("cancelled: %+v", j)
	}
	l.refuse(ErrInvalid, JobCancelled, entity, -1, nil)
	l.refuse(ErrInvalid, JobFinished, entity, -1, JobUpdate{Attempt: 1, Artifact: "late"})
	l.do(JobRetried, entity, nil)
	if j.State != JobQueued || j.Update.Attempt != 1 || j.Update.Class != "" || !j.Finished.IsZero() {
		t.Errorf("retried: %+v", j)
	}
	l.do(JobCancelled, entity, nil) // while it waits
	l.do(JobRetried, entity, nil)
	l.do(JobStarted, entity, JobUpdate{Attempt: 2})
	l.do(JobFinished, entity, JobUpdate{Attempt: 2, Artifact: "x"})
	l.refuse(ErrInvalid, JobCancelled, entity, -1, nil)
	l.refuse(ErrInvalid, JobRetried, entity, -1, nil)
}
