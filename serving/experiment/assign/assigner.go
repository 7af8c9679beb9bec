package assign

import (
	"strconv"
	"strings"

	"ctrloop/schemas/control"
)

// Variants, as impressions carry them. The list is closed, with decide.VariantExplore.
const (
	Control   = "control"
	Treatment = "treatment"
	Holdout   = "holdout" // in no experiment on purpose
	Forced    = "forced"  // an arm given by hand: no part of any analysis
)

// Unit is whom or what a decision is about. An experiment hashes User or Product, as its Unit says.
type Unit struct {
	User    string
	Product string

	// For targeting.
	Category   string
	Placement  string
	Attributes map[string]string // others that the caller gives: country, device, ...

	// Force asks for an arm, for testers: "<experiment>:control" or "<experiment>:treatment" of one that runs. Anything else
	// gives nothing by hand: who asked must look at Reason, which is ByForce only if the arm was given.
	Force string
}

// Reason says why the unit got its version. The list is closed.
type Reason string

// Reasons, in the order in which they are asked.
const (
	ByChampion  Reason = "champion"   // no experiment runs
	ByForce     Reason = "forced"     // an arm given by hand
	ByHoldout   Reason = "holdout"    // in the holdout group
	NoUnit      Reason = "no_unit"    // lacks the key that the experiment hashes
	NotTargeted Reason = "targeting"  // does not meet a condition
	OtherSlot   Reason = "other_slot" // belongs to another part of the layer
	BySplit     Reason = "split"      // by its hash
)

// Assignment says which model version answers, and why.
type Assignment struct {
	Experiment string // empty: not part of one; the analysis counts what carries an experiment
	Variant    string // Control or Treatment of Experiment; without one Holdout, Forced or empty
	Version    string // model version
	Step       int    // of the ramp
	// ArmShare is the probability of this arm for a unit of the experiment drawn at random, (0,1]; 1 without one. It is not
	// the propensity of a creative, to which the draw within the arm and exploration belong too.
	ArmShare  float64
	Other     string // version of the experiment's other arm, which had 1 - ArmShare; empty without one
	Reason    Reason
	Forced    string // ByForce: the experiment whose arm was given by hand, which is then no part of it
	ForcedArm string // ByForce: Control or Treatment
}

// Assigner answers from one state of the control log. It never changes: build another when the state has moved
// on, and swap the pointer. Safe for concurrent use, without allocation.
type Assigner struct {
	plans map[string]plan
}

type plan struct {
	champion    string
	holdout     control.Holdout // Share 0: none
	experiments []experiment    // running, oldest first
}

type experiment struct {
	*control.ExperimentStatus
	slot  Namespace
	whole bool // the slot is the whole layer
}

// New reads what it needs from the state, which it does not keep.
func New(st *control.State) *Assigner {
	a := &Assigner{plans: make(map[string]plan, len(st.Routes))}
	for logical, r := range st.Routes {
		p := plan{champion: r.Champion, holdout: st.Holdouts[logical]}
		if p.holdout.Version == "" {
			p.holdout.Version = r.Champion
		}
		for _, x := range st.Running(logical) {
			c := *x
			s := c.InSlot()
			p.experiments = append(p.experiments, experiment{&c, Namespace{s.Layer, Range{s.Start, s.End}}, s.Start <= 0 && s.End >= 1})
		}
		a.plans[logical] = p
	}
	return a
}

// Assign gives the unit's arm of the running experiment on the logical model whose slot it belongs to, or the champion.
// False: the logical model has no champion yet, so nothing can answer.
//
// The treatment owns the buckets [0, share) of the experiment's own hash and control the rest: as the share
// grows, nobody leaves the treatment. A unit without the key that the experiment hashes (an anonymous request
// in a test on users) gets the champion and no experiment: it would otherwise all fall into one bucket.
//
// A unit outside of an experiment's targeting may be inside the next one's; one inside its slot is in no other slot
// of the layer. Should two experiments overlap after all (started at the same moment by two people), the older one
// has the unit.
func (a *Assigner) Assign(logical string, u Unit) (Assignment, bool) {
	p, ok := a.plans[logical]
	if !ok || p.champion == "" {
		return Assignment{}, false
	}
	out := Assignment{Version: p.champion, ArmShare: 1, Reason: ByChampion}
	for i := range p.experiments {
		x := &p.experiments[i]
		if v := x.forced(&u); v != "" {
			return Assignment{
				Variant:   Forced,
				Version:   x.version(v),
				Step:      x.Step.Index,
				ArmShare:  1,
				Reason:    ByForce,
				Forced:    x.ID,
				ForcedArm: v,
			}, true
		}
	}
	if p.holdout.Share > 0 {
		value := u.User
		if value == "" {
			value = u.Product
		}
		if value != "" && hash2(p.holdout.Seed, value) < p.holdout.Share {
			return Assignment{Variant: Holdout, Version: p.holdout.Version, ArmShare: 1, Reason: ByHoldout}, true
		}
	}
	for i := range p.experiments {
		x := &p.experiments[i]
		value := x.value(&u)
		switch {
		case value == "":
			out.Reason = NoUnit
		case !meets(x.Targeting, &u):
			out.Reason = NotTargeted
		case !x.whole && !x.slot.Contains(value):
			out.Reason = OtherSlot
		default:
			out = Assignment{
				Experiment: x.ID,
				Variant:    Control,
				Version:    x.Control,
				Step:       x.Step.Index,
				ArmShare:   1 - x.Step.Share,
				Other:      x.Treatment,
				Reason:     BySplit,
			}
			if hash2(x.Seed, value) < x.Step.Share {
				out.Variant, out.Version, out.ArmShare, out.Other = Treatment, x.Treatment, x.Step.Share, x.Control
			}
			return out, true
		}
	}
	return out, true
}

// Logical is the logical model of a running experiment; empty: none of that name runs.
func (a *Assigner) Logical(id string) string {
	for logical, p := range a.plans {
		for _, x := range p.experiments {
			if x.ID == id {
				return logical
			}
		}
	}
	return ""
}

// Key is what a running experiment hashes of a unit; empty: it does not run, or the unit lacks it.
func (a *Assigner) Key(id string, u Unit) string {
	for _, p := range a.plans {
		for i := range p.experiments {
			if x := &p.experiments[i]; x.ID == id {
				return x.value(&u)
			}
		}
	}
	return ""
}

// value is what the experiment hashes of a unit.
func (x *experiment) value(u *Unit) string {
	if x.Unit == "product" {
		return u.Product
	}
	return u.User
}

func (x *experiment) version(variant string) string {
	if variant == Treatment {
		return x.Treatment
	}
	return x.Control
}

// ForceRefused says what is wrong with a [Unit.Force] that gave nothing by hand.
func ForceRefused(force string) string {
	return "force " + strconv.Quote(force) +
		`: want "<experiment>:control" or "<experiment>:treatment" of an experiment that runs on this model`
}

// forced is the variant that was given by hand: in the request, or on the experiment's list.
func (x *experiment) forced(u *Unit) string {
	if u.Force != "" {
		if id, v, ok := strings.Cut(u.Force, ":"); ok && id == x.ID && (v == Control || v == Treatment) {
			return v
		}
	}
	return x.ForcedArm(x.value(u))
}
