package control

import (
	"fmt"
	"slices"
	"time"
)

func (s *State) register(e Event) error {
	m, err := decode[Model](e)
	if err == nil {
		err = names(e, ModelEntity(m.Version))
	}
	if err != nil {
		return err
	}
	if s.Models[m.Version] != nil {
		return fmt.Errorf("%w: version %s is registered already and names are never reused", ErrInvalid, m.Version)
	}
	st := &ModelStatus{Model: m, State: ModelFetched, Since: e.Time}
	if why := m.FailedGates(); why != "" { // in one command: no reader sees the version loadable in between
		st.State, st.Reason = ModelFailed, Clip(why)
	}
	s.Models[m.Version] = st
	return nil
}

func (s *State) moveModel(e Event) error {
	c, err := decode[ModelStateChange](e)
	if err == nil {
		err = names(e, ModelEntity(id(e)))
	}
	if err != nil {
		return err
	}
	m := s.Models[id(e)]
	switch {
	case m == nil:
		return fmt.Errorf("%w: no model version %s", ErrInvalid, id(e))
	case s.strict() && !slices.Contains(modelMoves[c.State], m.State):
		return fmt.Errorf("%w: %s is %s and cannot become %q", ErrInvalid, m.Version, m.State, c.State)
	case s.strict() && len(c.Reason) > MaxText:
		return fmt.Errorf("%w: a reason of %d bytes, at most %d", ErrInvalid, len(c.Reason), MaxText)
	}
	m.enter(c.State, c.Reason, e.Time)
	return nil
}

// enter moves the version to a state.
func (m *ModelStatus) enter(state ModelState, reason string, at time.Time) {
	m.State, m.Reason, m.Since = state, reason, at
	m.Proved = m.Proved || slices.Contains(servedStates, state)
}

// promote is a promotion, or a way back, that a person asks for.
func (s *State) promote(e Event) error {
	p, err := decode[Promotion](e)
	if err == nil {
		err = names(e, RouteEntity(p.Logical))
	}
	if err != nil {
		return err
	}
	if s.Models[p.Version] == nil {
		return fmt.Errorf("%w: no model version %s", ErrInvalid, p.Version)
	}
	if s.strict() {
		if err := s.mayServe(p.Logical, p.Version); err != nil {
			return err
		}
		for _, x := range s.Running(p.Logical) { // in one command, or its decision could contradict the route
			if x.Treatment == p.Version {
				return fmt.Errorf("%w: experiment %s tests %s: end it with promote instead", ErrInvalid, x.ID, p.Version)
			}
		}
	}
	s.route(p.Logical, p.Version, e.Note, e.Time)
	return nil
}

// mayServe says why a version may not become the champion of a logical model.
func (s *State) mayServe(logical, version string) error {
	m := s.Models[version]
	switch {
	case m == nil:
		return fmt.Errorf("%w: no model version %s", ErrInvalid, version)
	case m.Logical != logical:
		return fmt.Errorf("%w: %s is a %s model, not %s", ErrInvalid, version, m.Logical, logical)
	case s.Routes[logical].Champion == "" && m.Base == "" && m.State == ModelFetched:
		return nil // a base has no probe that tells it from itself; it is routed to once it has answered
	case m.CanServe() != "":
		return fmt.Errorf("%w: %s cannot become champion: %s", ErrInvalid, version, m.CanServe())
	}
	return nil
}

// route makes a registered version champion.
func (s *State) route(logical, version, why string, at time.Time) {
	old := s.Routes[logical]
	previous := old.Champion
	if previous == version { // promoted again: the way back stays
		previous = old.Previous
	}
	if m := s.Models[old.Champion]; m != nil && old.Champion != version {
		if !s.strict() || m.State != ModelFailed { // what has failed stays failed
			m.enter(ModelRetained, "replaced by "+version, at)
		}
		s.also(ModelEntity(old.Champion))
	}
	s.Routes[logical] = Route{Champion: version, Previous: previous, Since: at}
	s.Models[version].enter(ModelChampion, why, at)
	s.also(ModelEntity(version))
}
