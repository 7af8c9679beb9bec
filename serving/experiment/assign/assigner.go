package assign

import (
	"ctrloop/schemas/control"
)

// Variants of an experiment, as impressions carry them.
const (
	Control   = "control"
	Treatment = "treatment"
)

// Unit is whom or what a decision is about. An experiment hashes one of the two, as its Unit says.
type Unit struct {
	User    string
	Product string
}

// Assignment says which model version answers, and why.
type Assignment struct {
	Experiment string  // empty: none runs, the champion answers
	Variant    string  // Control or Treatment; empty without an experiment
	Version    string  // model version
	Step       int     // of the ramp
	Propensity float64 // probability of this arm for a unit drawn at random, (0,1]
}

// Assigner answers from one state of the control log. It never changes: build another when the state has moved
// on, and swap the pointer. Safe for concurrent use, without allocation.
type Assigner struct {
	plans map[string]plan
}

type plan struct {
	champion   string
	experiment *control.ExperimentStatus // nil: none runs
}

// New reads what it needs from the state, which it does not keep.
func New(st *control.State) *Assigner {
	a := &Assigner{plans: make(map[string]plan, len(st.Routes))}
	for logical, r := range st.Routes {
		p := plan{champion: r.Champion}
		if running := st.Running(logical); len(running) > 0 { // the oldest, should two have been started at once
			x := *running[0]
			p.experiment = &x
		}
		a.plans[logical] = p
	}
	return a
}

// Assign gives the unit's arm of the running experiment on the logical model, or the champion when none runs.
// False: the logical model has no champion yet, so nothing can answer.
//
// The treatment owns the buckets [0, share) of the experiment's own hash and control the rest: as the share
// grows, nobody leaves the treatment. A unit without the key that the experiment hashes (an anonymous request
// in a test on users) gets the champion and no experiment: it would otherwise all fall into one bucket.
func (a *Assigner) Assign(logical string, u Unit) (Assignment, bool) {
	p, ok := a.plans[logical]
	if !ok || p.champion == "" {
		return Assignment{}, false
	}
	value := u.User
	if p.experiment != nil && p.experiment.Unit == "product" {
		value = u.Product
	}
	if p.experiment == nil || value == "" {
		return Assignment{Version: p.champion, Propensity: 1}, true
	}
	x := p.experiment
	out := Assignment{Experiment: x.ID, Variant: Control, Version: x.Control, Step: x.Step.Index, Propensity: 1 - x.Step.Share}
	if hash2(x.Seed, value) < x.Step.Share {
		out.Variant, out.Version, out.Propensity = Treatment, x.Treatment, x.Step.Share
	}
	return out, true
}
