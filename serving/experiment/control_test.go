package experiment

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"ctrloop/internal/controllog"
	"ctrloop/internal/controllog/controltest"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/ramp"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// during runs something once while a command asks the warehouse.
type during struct{ f func() }

func (d *during) Sums(context.Context, control.Experiment, []Span) (ramp.Sums, error) {
	if f := d.f; f != nil {
		d.f = nil
		f()
	}
	return ramp.Sums{}, nil
}

// underTest is a log with an experiment "x" of prompt-b against the champion prompt-a.
func underTest(t *testing.T) *controltest.Log {
	t.Helper()
	l := controltest.New()
	for _, v := range []string{"prompt-a", "prompt-b"} {
		l.Register(t, control.Model{Version: v, Logical: "prompt"})
		l.Shadow(t, v)
	}
	l.Promote(t, "prompt-a")
	l.Put(t, control.ExperimentCreated, control.ExperimentEntity("x"), control.Experiment{
		ID: "x", Logical: "prompt", Unit: "user", Seed: "x", Control: "prompt-a", Treatment: "prompt-b",
		Steps: []float64{0.5, 1}, Alpha: 0.05, NStar: 5000,
	})
	return l
}

func newOn(t *testing.T, l control.Log, lead controllog.Leader, src Source) *Service {
	t.Helper()
	s, err := New(Default(), Deps{Control: l, Lead: lead, Source: src, Wall: time.Now, EventNow: time.Now}, zerolog.Nop(),
		prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A person and a guard decide at the same time, in either order: the first one stands, the other is told, and the champion
// is always what the decision says.
func TestOfTwoDecisionsOneStands(t *testing.T) {
	for _, c := range []struct {
		name          string
		first, second control.Outcome
		champion      string
	}{
		{"the guard promotes while a person rolls back", control.Promote, control.RollBack, "prompt-b"},
		{"the guard rolls back while a person promotes", control.RollBack, control.Promote, "prompt-a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, src := underTest(t), &during{}
			s := newOn(t, l, controllog.Alone(l), src)
			src.f = func() {
				l.Put(t, control.ExperimentDecided, control.ExperimentEntity("x"), control.Decision{Outcome: c.first, Rule: "guard"})
			}
			_, err := s.Stop(t.Context(), "x", "ann", Request{Note: "shoppers complain", Outcome: c.second})
			if r, ok := control.Rejected(err); !ok || r.Reason != control.Conflict {
				t.Errorf("the second decision: %v", err)
			}
			if err := s.LookAll(t.Context()); err != nil {
				t.Error(err)
			}
			st := l.State()
			if got := st.Routes["prompt"].Champion; got != c.champion || st.Experiments["x"].Decision.Outcome != c.first {
				t.Errorf("decided %s, champion %s", st.Experiments["x"].Decision.Outcome, got)
			}
		})
	}
}

// A promotion by hand while a stop asks the warehouse: the stop's promotion is refused, not added on top.
func TestADecisionKnowsTheChampion(t *testing.T) {
	l, src := underTest(t), &during{}
	l.Register(t, control.Model{Version: "prompt-c", Logical: "prompt"})
	l.Shadow(t, "prompt-c")
	s := newOn(t, l, controllog.Alone(l), src)
	src.f = func() { l.Promote(t, "prompt-c") }
	_, err := s.Stop(t.Context(), "x", "ann", Request{Note: "it is better", Outcome: control.Promote})
	if !errors.Is(err, control.ErrConflict) {
		t.Errorf("a promotion over another champion: %v", err)
	}
	if st := l.State(); st.Routes["prompt"].Champion != "prompt-c" || !st.Experiments["x"].Running() {
		t.Errorf("champion %s, %+v", st.Routes["prompt"].Champion, st.Experiments["x"].Decision)
	}
}

// A treatment whose version has failed is rolled back, whatever its figures.
func TestATreatmentThatFailedIsRolledBack(t *testing.T) {
	l := underTest(t)
	l.Put(t, control.ModelStateChanged, control.ModelEntity("prompt-b"), control.ModelStateChange{State: control.ModelFailed, Reason: "gone"})
	if err := newOn(t, l, controllog.Alone(l), &during{}).LookAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := l.State().Experiments["x"].Decision; d == nil || d.Outcome != control.RollBack || d.Rule != string(ramp.TreatmentFailed) {
		t.Errorf("decision %+v", d)
	}
}

// Two processes have the controller: one looks. When it is cut off the other goes on, and one decision is on the log.
func TestTwoControllersDecideOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, pulse := underTest(t), &controltest.Pulse{}
		looked := map[string]int{}
		run := func(owner string) {
			k := controllog.NewLeases(l, pulse, owner, controllog.DefaultTTL, zerolog.Nop(), nil)
			h := k.Hold(control.RoleExperiments)
			s := newOn(t, l, h, counted(func() { looked[owner]++ }))
			go func() { _ = k.Run(t.Context()) }()
			go func() { _ = h.Run(t.Context()) }()
			go func() { _ = s.Run(t.Context()) }()
		}
		run("one")
		synctest.Wait()
		run("two")
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if looked["one"] == 0 || looked["two"] != 0 {
			t.Fatalf("looks: %v", looked)
		}
		pulse.Cut("one", errors.New("cut off"))
		time.Sleep(time.Minute)
		synctest.Wait()
		before := looked["one"]
		l.Put(t, control.ModelStateChanged, control.ModelEntity("prompt-b"), control.ModelStateChange{State: control.ModelFailed})
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if looked["one"] != before || looked["two"] == 0 {
			t.Errorf("looks after the first was cut off: %v, it had %d", looked, before)
		}
		decided := 0
		for _, e := range l.Applied() {
			if e.Type == control.ExperimentDecided {
				decided++
				if e.Role != control.RoleExperiments || e.Epoch != 2 {
					t.Errorf("decided as %s in epoch %d", e.Role, e.Epoch)
				}
			}
		}
		if decided != 1 {
			t.Errorf("%d decisions", decided)
		}
	})
}

// counted is a source that counts its questions.
type counted func()

func (c counted) Sums(context.Context, control.Experiment, []Span) (ramp.Sums, error) {
	c()
	return ramp.Sums{}, nil
}
