package rollout

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"ctrloop/internal/controllog"
	"ctrloop/internal/controllog/controltest"
	"ctrloop/internal/telemetry/telemetrytest"
	"ctrloop/schemas/control"
)

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

func steps(t *testing.T, s *Service) (n int) {
	t.Helper()
	for {
		worked, err := s.step(t.Context(), s.lead.Held())
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
	l := controltest.New()
	r := &recorder{}
	s, err := New(Default(), controllog.Alone(l), r, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if n := steps(t, s); n != 0 {
		t.Fatalf("%d steps without any model", n)
	}
	l.Register(t, control.Model{Version: "prompt-base", Logical: Logical})
	l.Promote(t, "prompt-base")
	l.Register(t, control.Model{Version: "prompt-a", Logical: Logical, Base: "b"})
	steps(t, s)
	if d := cmp.Diff([]string{"prompt-base"}, r.calls); d != "" {
		t.Fatalf("a version that is not in shadow must not be rendered: %s", d)
	}
	l.Shadow(t, "prompt-a")
	r.fail = errors.New("image backend down")
	if _, err := s.step(t.Context(), s.lead.Held()); !errors.Is(err, r.fail) {
		t.Fatalf("step without an image backend: %v", err)
	}
	if len(l.State().Experiments) != 0 {
		t.Fatal("an experiment started without creatives")
	}
	r.fail = nil
	steps(t, s)
	x := l.State().Experiments["exp-prompt-a"]
	if x == nil || x.Control != "prompt-base" || x.Treatment != "prompt-a" || x.Step.Share != 0.01 {
		t.Fatalf("experiment: %+v", x)
	}
	if got := l.State().Models["prompt-a"].State; got != control.ModelRamp {
		t.Errorf("candidate is %s", got)
	}
}

func TestOneExperimentAtATime(t *testing.T) {
	l := controltest.New()
	s, err := New(Default(), controllog.Alone(l), &recorder{}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	l.Register(t, control.Model{Version: "prompt-base", Logical: Logical})
	l.Promote(t, "prompt-base")
	for _, v := range []string{"prompt-a", "prompt-b"} {
		l.Register(t, control.Model{Version: v, Logical: Logical, Base: "b"})
		l.Shadow(t, v)
	}
	steps(t, s)
	if n := len(l.State().Running(Logical)); n != 1 {
		t.Fatalf("%d experiments run", n)
	}
	first := l.State().Running(Logical)[0]
	l.Put(t, control.ExperimentDecided, control.ExperimentEntity(first.ID), control.Decision{Outcome: control.RollBack, Rule: "test"})
	if got := l.State().Models[first.Treatment].State; got != control.ModelRetained {
		t.Errorf("after a roll-back the candidate is %s", got)
	}
	steps(t, s)
	if r := l.State().Running(Logical); len(r) != 1 || r[0].Treatment == first.Treatment {
		t.Errorf("after the decision the other candidate is next: %+v", r)
	}
}

// A version that a person has drafted an experiment for is not rolled out over their head.
func TestADraftIsLeftToItsAuthor(t *testing.T) {
	l := controltest.New()
	s, err := New(Default(), controllog.Alone(l), &recorder{}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	l.Register(t, control.Model{Version: "prompt-base", Logical: Logical})
	l.Promote(t, "prompt-base")
	l.Register(t, control.Model{Version: "prompt-a", Logical: Logical, Base: "b"})
	l.Shadow(t, "prompt-a")
	l.Put(
		t,
		control.ExperimentCreated,
		control.ExperimentEntity("mine"),
		control.Experiment{ID: "mine", Logical: Logical, Control: "prompt-base", Treatment: "prompt-a", Steps: []float64{0.5}, Draft: true},
	)
	steps(t, s)
	if len(l.State().Experiments) != 1 {
		t.Fatalf("experiments: %v", l.State().Experiments)
	}
	l.Put(t, control.ExperimentStarted, control.ExperimentEntity("mine"), control.Start{})
	steps(t, s)
	if len(l.State().Running(Logical)) != 1 {
		t.Errorf("running: %v", l.State().Running(Logical))
	}
}

// A command that changes nothing is no work: the rollout waits instead of sending it again and again.
func TestARepeatedCommandIsNoWork(t *testing.T) {
	l := controltest.New()
	for _, v := range []string{"prompt-a", "prompt-b"} {
		l.Register(t, control.Model{Version: v, Logical: Logical})
		l.Shadow(t, v)
	}
	l.Promote(t, "prompt-a")
	s, err := New(Default(), controllog.Alone(l), &recorder{}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	s.ensured["prompt-a"], s.ensured["prompt-b"] = true, true
	worked, err := s.start(t.Context(), l, "prompt-a", "prompt-b")
	if !worked || err != nil {
		t.Fatal(worked, err)
	}
	if worked, err := s.start(t.Context(), l, "prompt-a", "prompt-b"); worked || err != nil {
		t.Errorf("the same command again: worked %v, %v", worked, err)
	}
}

// The start of an experiment is refused once, and its answer lost once: one experiment comes of it.
func TestTheStartOfAnExperimentSurvivesFaults(t *testing.T) {
	for _, fault := range []string{"refused", "answer lost"} {
		l := controltest.New()
		for _, v := range []string{"prompt-a", "prompt-b"} {
			l.Register(t, control.Model{Version: v, Logical: Logical})
			l.Shadow(t, v)
		}
		l.Promote(t, "prompt-a")
		once := true
		f := func(control.Event) error {
			if once {
				once = false
				return errors.New(fault)
			}
			return nil
		}
		if fault == "refused" {
			l.Refuse(f)
		} else {
			l.Lose(f)
		}
		s, err := New(Default(), controllog.Alone(l), &recorder{}, zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			_, _ = s.step(t.Context(), l)
		}
		if n := len(l.State().Experiments); n != 1 || l.State().Models["prompt-b"].State != control.ModelRamp {
			t.Errorf("%s: %d experiments, the candidate is %s", fault, n, l.State().Models["prompt-b"].State)
		}
		if n := l.Appends(); n > 3 {
			t.Errorf("%s: %d appends", fault, n)
		}
	}
}

// S9: a rollout that cannot write to the control log says so, and is well again as soon as it can.
func TestARolloutThatCannotWriteSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := controltest.New()
		for _, v := range []string{"prompt-a", "prompt-b"} {
			l.Register(t, control.Model{Version: v, Logical: Logical})
			l.Shadow(t, v)
		}
		l.Promote(t, "prompt-a")
		l.Refuse(func(control.Event) error { return errors.New("no right to write") })
		s, err := New(Default(), controllog.Alone(l), &recorder{}, zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		gate, work := telemetrytest.NewGate(nil)
		s.Reports(work)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		if reason := gate.Await(t, false); !strings.Contains(reason, "no right to write") {
			t.Errorf("the reason is %q", reason)
		}
		l.Refuse(nil)
		gate.Await(t, true)
		cancel()
		<-ended
	})
}
