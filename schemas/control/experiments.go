package control

import (
	"fmt"
	"slices"
	"time"
)

func (s *State) create(e Event) error {
	x, err := decode[Experiment](e)
	if err == nil {
		err = names(e, ExperimentEntity(x.ID))
	}
	switch {
	case err != nil:
		return err
	case s.Experiments[x.ID] != nil:
		return fmt.Errorf("%w: experiment %s exists", ErrInvalid, x.ID)
	case len(x.Steps) == 0:
		return fmt.Errorf("%w: experiment %s has no steps", ErrInvalid, x.ID)
	case s.strict() && len(x.Steps) > MaxSteps:
		return fmt.Errorf("%w: %d steps, at most %d", ErrInvalid, len(x.Steps), MaxSteps)
	case s.strict():
		if err := s.mayTest(x); err != nil {
			return err
		}
	}
	first := Step{Index: 0, Share: x.Steps[0]}
	status := &ExperimentStatus{Experiment: x, Step: first, History: []Step{first}, Stepped: e.Time}
	status.remember(e, 1)
	s.Experiments[x.ID] = status
	if !x.Draft {
		s.ramp(x.Treatment, x.ID, e.Time)
	}
	return nil
}

// mayTest says why an experiment may not be: a draft needs versions that exist, one that runs needs versions that can
// answer.
func (s *State) mayTest(x Experiment) error {
	if x.Control == x.Treatment {
		return fmt.Errorf("%w: control and treatment are both %q", ErrInvalid, x.Control)
	}
	for _, version := range []string{x.Control, x.Treatment} {
		switch m := s.Models[version]; {
		case m == nil:
			return fmt.Errorf("%w: no model version %q", ErrInvalid, version)
		case m.Logical != x.Logical:
			return fmt.Errorf("%w: %s is a %s model, not %s", ErrInvalid, version, m.Logical, x.Logical)
		case x.Draft:
		case m.CanServe() != "":
			return fmt.Errorf("%w: %s cannot take part: %s", ErrInvalid, version, m.CanServe())
		case version == x.Treatment && !slices.Contains(testable, m.State):
			return fmt.Errorf("%w: %s is %s and cannot be a treatment", ErrInvalid, version, m.State)
		}
	}
	return nil
}

func (s *State) experiment(e Event) error {
	x := s.Experiments[id(e)]
	if x == nil {
		return fmt.Errorf("%w: no such experiment", ErrInvalid)
	}
	if err := names(e, ExperimentEntity(x.ID)); err != nil {
		return err
	}
	if x.Decision != nil {
		return fmt.Errorf("%w: experiment %s was decided (%s)", ErrInvalid, x.ID, x.Decision.Outcome)
	}
	if x.Draft && e.Type != ExperimentStarted && e.Type != ExperimentForced && e.Type != ExperimentDecided {
		return fmt.Errorf("%w: experiment %s has not started", ErrInvalid, x.ID)
	}
	var err error
	switch e.Type {
	case ExperimentStarted:
		err = s.start(x, e)
	case ExperimentPaused, ExperimentResumed:
		if pause := e.Type == ExperimentPaused; pause == x.Paused {
			err = fmt.Errorf("%w: experiment %s is %s already", ErrInvalid, x.ID, x.Phase())
		} else {
			x.Paused = pause
		}
	case ExperimentForced:
		err = x.force(e)
	case ExperimentDecided:
		err = s.decide(x, e)
	default:
		err = s.step(x, e)
	}
	if err == nil {
		x.remember(e, s.Versions[e.Entity]+1)
	}
	return err
}

// remember adds a command to the trail. Copies of the state share the array up to their own length (see View).
func (x *ExperimentStatus) remember(e Event, version int64) {
	c := Change{Version: version, Type: e.Type, Actor: e.Actor, Note: e.Note, Time: e.Time, Data: e.Data}
	x.Trail = append(x.Trail, c)
	if len(x.Trail) > MaxTrail {
		x.Trail = x.Trail[len(x.Trail)-MaxTrail:]
	}
}

// ramp marks a version as the treatment of a running experiment, in the command that starts it, so that no reader
// sees one without the other.
func (s *State) ramp(version, experiment string, at time.Time) {
	if m := s.Models[version]; m != nil {
		m.enter(ModelRamp, "in experiment "+experiment, at)
		s.also(ModelEntity(version))
	}
}

func (s *State) start(x *ExperimentStatus, e Event) error {
	st, err := decode[Start](e)
	if err != nil {
		return err
	}
	if !x.Draft {
		return fmt.Errorf("%w: experiment %s has started already", ErrInvalid, x.ID)
	}
	if s.strict() {
		now := x.Experiment
		now.Draft = false
		if err := s.mayTest(now); err != nil {
			return err
		}
	}
	x.Draft, x.Stepped = false, e.Time
	x.Step.AtMS = st.AtMS
	x.History = []Step{x.Step}
	s.ramp(x.Treatment, x.ID, e.Time)
	return nil
}

// decide ends an experiment and moves route and version with it, in one transition: nobody can come between them.
func (s *State) decide(x *ExperimentStatus, e Event) error {
	d, err := decode[Decision](e)
	if err != nil {
		return err
	}
	if !s.strict() { // a promotion was a command of its own
		x.Decision, x.Decided = &d, e.Time
		if m := s.Models[x.Treatment]; m != nil && d.Outcome != Promote && m.State != ModelChampion {
			m.enter(ModelRetained, fmt.Sprintf("%s: %s", d.Outcome, d.Rule), e.Time)
		}
		return nil
	}
	champion, err := s.outcome(x, d.Outcome)
	if err != nil {
		return err
	}
	if d.Champion != "" && d.Champion != champion {
		return fmt.Errorf("%w: it was to make %s champion, and would make %q", ErrConflict, d.Champion, champion)
	}
	x.Decision, x.Decided = &d, e.Time
	why := Clip(fmt.Sprintf("experiment %s, %s: %s", x.ID, d.Outcome, d.Rule))
	if champion != "" {
		s.route(x.Logical, champion, why, e.Time)
		s.also(RouteEntity(x.Logical))
	}
	s.retain(x.Treatment, why, e.Time)
	return nil
}

// ChampionAfter is the version that a decision would make champion now; empty: it would leave the route alone.
func (s *State) ChampionAfter(x *ExperimentStatus, o Outcome) string {
	champion, err := s.outcome(x, o)
	if err != nil {
		return ""
	}
	return champion
}

// outcome is the version that a decision makes champion, "" if it leaves the route alone, or why it cannot be.
func (s *State) outcome(x *ExperimentStatus, o Outcome) (champion string, err error) {
	now := s.Routes[x.Logical].Champion
	switch o {
	case Promote:
		if x.Draft {
			return "", fmt.Errorf("%w: experiment %s has not started: there is nothing to decide on", ErrInvalid, x.ID)
		}
		if now == x.Treatment {
			return "", nil
		}
		if now != x.Control {
			return "", fmt.Errorf("%w: %s was compared with %s, and the champion is %q by now", ErrConflict, x.Treatment, x.Control, now)
		}
		return x.Treatment, s.mayServe(x.Logical, x.Treatment)
	case RollBack, Inconclusive:
		if x.Draft || now != x.Treatment {
			return "", nil
		}
		return x.Control, s.mayServe(x.Logical, x.Control)
	default: // Hold is not an end
		return "", fmt.Errorf("%w: %q does not end an experiment", ErrInvalid, o)
	}
}

// retain takes a treatment whose experiment has ended out of the race, unless something else speaks for it.
func (s *State) retain(version, why string, at time.Time) {
	m := s.Models[version]
	if m == nil || !slices.Contains([]ModelState{ModelProbed, ModelShadow, ModelRamp}, m.State) {
		return
	}
	for _, other := range s.Running(m.Logical) {
		if other.Treatment == version {
			return
		}
	}
	m.enter(ModelRetained, why, at)
	s.also(ModelEntity(version))
}

func (s *State) step(x *ExperimentStatus, e Event) error {
	st, err := decode[Step](e)
	switch {
	case err != nil:
		return err
	case st.Index < 0 || st.Index >= len(x.Steps):
		return fmt.Errorf("%w: step %d of %d", ErrInvalid, st.Number(), len(x.Steps))
	case s.strict() && st.Share != x.Steps[st.Index]:
		return fmt.Errorf("%w: step %d has the share %g, not %g", ErrInvalid, st.Number(), x.Steps[st.Index], st.Share)
	case s.strict() && len(x.History) >= MaxVisits:
		return fmt.Errorf("%w: experiment %s has made %d steps: decide it", ErrInvalid, x.ID, len(x.History))
	}
	x.Step, x.Stepped = st, e.Time
	x.History = append(x.History, st) // copies of the state share the array up to their own length (see View)
	return nil
}

func (x *ExperimentStatus) force(e Event) error {
	f, err := decode[Forced](e)
	switch {
	case err != nil:
		return err
	case f.Unit == "" || (f.Variant != "" && f.Variant != "control" && f.Variant != "treatment"):
		return fmt.Errorf("%w: unit %q forced to variant %q", ErrInvalid, f.Unit, f.Variant)
	case f.Variant != "" && len(x.Forced) >= MaxForced:
		return fmt.Errorf("%w: experiment %s has %d forced units: take some back first", ErrInvalid, x.ID, MaxForced)
	case f.Variant == "":
		delete(x.Forced, f.Unit)
		return nil
	}
	if x.Forced == nil {
		x.Forced = map[string]string{}
	}
	x.Forced[f.Unit] = f.Variant
	return nil
}
