package rollout

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"ctrloop/schemas/control"
)

type memoryLog struct {
	st      *control.State
	offset  int64
	changed chan struct{}
}

func (l *memoryLog) State() *control.State    { return l.st.Clone() }
func (l *memoryLog) Changed() <-chan struct{} { return l.changed }
func (l *memoryLog) Append(_ context.Context, e control.Event) error {
	l.offset++
	return l.st.Apply(l.offset, e)
}

type recorder struct {
	calls []string
	fail  error
}

func (r *recorder) Ensure(_ context.Context, version string, _ int) error {
	if r.fail != nil {
		return r.fail
	}
	r.calls = append(r.calls, version)
	return nil
}

func put(t *testing.T, l *memoryLog, typ control.Type, entity string, data any) {
	t.Helper()
	e, err := control.NewEvent(entity+string(typ), typ, entity, -1, "test", "", time.Unix(1, 0), data)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

func steps(t *testing.T, s *Service) (n int) {
	t.Helper()
	for {
		worked, err := s.step(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !worked {
			return n
		}
		n++
	}
}

func TestACandidateGetsCreativesThenAnExperiment(t *testing.T) {
	l := &memoryLog{st: control.NewState(), changed: make(chan struct{})}
	r := &recorder{}
	s, err := New(Default(), l, r, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if n := steps(t, s); n != 0 {
		t.Fatalf("%d steps without any model", n)
	}
	put(t, l, control.ModelRegistered, control.ModelEntity("prompt-base"), control.Model{Version: "prompt-base", Logical: Logical})
	put(t, l, control.ModelPromoted, control.RouteEntity(Logical), control.Promotion{Logical: Logical, Version: "prompt-base"})
	put(t, l, control.ModelRegistered, control.ModelEntity("prompt-a"), control.Model{Version: "prompt-a", Logical: Logical, Base: "b"})
	steps(t, s)
	if d := cmp.Diff([]string{"prompt-base"}, r.calls); d != "" {
		t.Fatalf("a version that is not in shadow must not be rendered: %s", d)
	}
	put(t, l, control.ModelStateChanged, control.ModelEntity("prompt-a"), control.ModelStateChange{State: control.ModelShadow})
	r.fail = errors.New("image backend down")
	if _, err := s.step(t.Context()); !errors.Is(err, r.fail) {
		t.Fatalf("step without an image backend: %v", err)
	}
	if len(l.st.Experiments) != 0 {
		t.Fatal("an experiment started without creatives")
	}
	r.fail = nil
	steps(t, s)
	x := l.st.Experiments["exp-prompt-a"]
	if x == nil || x.Control != "prompt-base" || x.Treatment != "prompt-a" || x.Step.Share != 0.01 {
		t.Fatalf("experiment: %+v", x)
	}
	if got := l.st.Models["prompt-a"].State; got != control.ModelRamp {
		t.Errorf("candidate is %s", got)
	}
}

func TestOneExperimentAtATime(t *testing.T) {
	l := &memoryLog{st: control.NewState(), changed: make(chan struct{})}
	s, err := New(Default(), l, &recorder{}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	put(t, l, control.ModelRegistered, control.ModelEntity("prompt-base"), control.Model{Version: "prompt-base", Logical: Logical})
	put(t, l, control.ModelPromoted, control.RouteEntity(Logical), control.Promotion{Logical: Logical, Version: "prompt-base"})
	for _, v := range []string{"prompt-a", "prompt-b"} {
		put(t, l, control.ModelRegistered, control.ModelEntity(v), control.Model{Version: v, Logical: Logical, Base: "b"})
		put(t, l, control.ModelStateChanged, control.ModelEntity(v), control.ModelStateChange{State: control.ModelShadow})
	}
	steps(t, s)
	if n := len(l.st.Running(Logical)); n != 1 {
		t.Fatalf("%d experiments run", n)
	}
	first := l.st.Running(Logical)[0]
	put(t, l, control.ExperimentDecided, control.ExperimentEntity(first.ID), control.Decision{Outcome: control.RollBack, Rule: "test"})
	if got := l.st.Models[first.Treatment].State; got != control.ModelRetained {
		t.Errorf("after a roll-back the candidate is %s", got)
	}
	steps(t, s)
	if r := l.st.Running(Logical); len(r) != 1 || r[0].Treatment == first.Treatment {
		t.Errorf("after the decision the other candidate is next: %+v", r)
	}
}

// A version that a person has drafted an experiment for is not rolled out over their head.
func TestADraftIsLeftToItsAuthor(t *testing.T) {
	l := &memoryLog{st: control.NewState(), changed: make(chan struct{})}
	s, err := New(Default(), l, &recorder{}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	put(t, l, control.ModelRegistered, control.ModelEntity("prompt-base"), control.Model{Version: "prompt-base", Logical: Logical})
	put(t, l, control.ModelPromoted, control.RouteEntity(Logical), control.Promotion{Logical: Logical, Version: "prompt-base"})
	put(t, l, control.ModelRegistered, control.ModelEntity("prompt-a"), control.Model{Version: "prompt-a", Logical: Logical, Base: "b"})
	put(t, l, control.ModelStateChanged, control.ModelEntity("prompt-a"), control.ModelStateChange{State: control.ModelShadow})
	put(
		t,
		l,
		control.ExperimentCreated,
		control.ExperimentEntity("mine"),
		control.Experiment{ID: "mine", Logical: Logical, Control: "prompt-base", Treatment: "prompt-a", Steps: []float64{0.5}, Draft: true},
	)
	steps(t, s)
	if len(l.st.Experiments) != 1 {
		t.Fatalf("experiments: %v", l.st.Experiments)
	}
	put(t, l, control.ExperimentStarted, control.ExperimentEntity("mine"), control.Start{})
	steps(t, s)
	if len(l.st.Running(Logical)) != 1 {
		t.Errorf("running: %v", l.st.Running(Logical))
	}
}
