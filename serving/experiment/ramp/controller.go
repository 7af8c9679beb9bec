package ramp

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"ctrloop/schemas/control"
)

// Action is what a look concludes. The list is closed.
type Action string

// Actions. All but Hold and Step end the experiment.
const (
	Hold         Action = "hold"
	Step         Action = "step"
	Promote      Action = "promote"
	RollBack     Action = "rollback"
	Inconclusive Action = "inconclusive"
)

// Rule is what made the look conclude it. The list is closed; docs and console name the same ones.
type Rule string

// Rules, in the order in which they are asked.
const (
	NoControl        Rule = "no_control"        // no step has both arms: nothing can ever be compared
	GenerationErrors Rule = "generation_errors" // the treatment fails to generate more often than allowed
	SampleRatio      Rule = "sample_ratio"      // units do not fall into the arms as planned: the data are not to be trusted
	CTRHarm          Rule = "ctr_harm"          // the treatment loses more than the margin
	GuardrailBroken  Rule = "guardrail"         // another metric is worse than its margin allows; Why names it
	LiftBelowZero    Rule = "lift_below_zero"   // deciding step: worse than control
	LiftAboveZero    Rule = "lift_above_zero"   // deciding step: better than control
	LiftLost         Rule = "lift_lost"         // full step: the deciding step's complete data contradict the lift that was shown
	MaxSamples       Rule = "max_samples"       // enough data and no difference shown, or, at an earlier step, never enough
	MinSamples       Rule = "min_samples"       // not enough data in this step yet
	StepComplete     Rule = "step_complete"     // enough data, no guard fired
	Undecided        Rule = "undecided"         // deciding step: enough data, interval spans zero
	Paused           Rule = "paused"            // a person holds the ramp; guards still roll back
	AlreadyPromoted  Rule = "already_promoted"  // the treatment became champion by another hand (given by the service)
	ChampionChanged  Rule = "champion_changed"  // better than its control, which is not the champion any more (given by the service)
	TreatmentFailed  Rule = "treatment_failed"  // its version cannot answer any more (given by the service)
	Manual           Rule = "manual"            // a person ended it (given by the service)
	UnreadFigures    Rule = "unread_figures"    // figures could not be read, or cannot be right: nothing is decided for the treatment
	Blind            Rule = "blind"             // looks have failed one after another for too long (given by the service)
)

// Evidence is what a look is given.
type Evidence struct {
	Now        Sums   // of the present step
	Deciding   Sums   // of the deciding step; the same as Now while it runs
	Generation Counts // of the treatment's version, since the experiment began
	Metrics    []Metric
	Unread     []string // figures that could not be read, with the reasons
}

// Verdict is the outcome of one look.
type Verdict struct {
	Action  Action        `json:"action"`
	Rule    Rule          `json:"rule"`
	Why     string        `json:"why"`
	Next    *control.Step `json:"next,omitempty"` // of a Step; without its time
	Enough  bool          `json:"enough"`         // the data reach what a rule about the treatment needs; false: nothing is known of it yet
	Figures Figures       `json:"figures"`        // that the rule fired on
}

// Decides is the index of the deciding step: the one with the largest share below 1. -1: there is none.
func Decides(steps []float64) int {
	best := -1
	for i, s := range steps {
		if s < 1 && (best < 0 || s >= steps[best]) {
			best = i
		}
	}
	return best
}

// Look gives the verdict on a running experiment. While it is paused only a guard's roll-back acts.
func Look(cfg Config, x control.ExperimentStatus, ev Evidence) Verdict {
	v := look(cfg, x, ev)
	v.Enough = looker{cfg: cfg, x: x, f: v.Figures}.missing() == "" && len(ev.Unread) == 0
	if v.Action != RollBack && v.Action != Inconclusive {
		if why := Unseen(v.Figures); why != "" {
			v.Why = fmt.Sprintf("%s; otherwise: %s by %s, %s", why, v.Action, v.Rule, v.Why)
			v.Action, v.Rule, v.Next = Hold, UnreadFigures, nil
		}
	}
	if x.Paused && v.Rule != Paused && (v.Action != RollBack || v.Rule == LiftBelowZero) {
		v.Why = fmt.Sprintf("the ramp is paused; otherwise: %s by %s, %s", v.Action, v.Rule, v.Why)
		v.Action, v.Rule, v.Next = Hold, Paused, nil
	}
	return v
}

// Unseen says what a look could not read, or what of it cannot be right; empty: nothing.
func Unseen(f Figures) string {
	out := slices.Clone(f.Unread)
	if f.Broken != "" {
		out = append(out, f.Broken)
	}
	return strings.Join(out, "; ")
}

func look(cfg Config, x control.ExperimentStatus, ev Evidence) Verdict {
	deciding := Decides(x.Steps)
	l := looker{cfg: cfg, x: x, f: figures(cfg, x, x.Step, ev.Now, ev)}
	if deciding < 0 {
		return l.say(Inconclusive, NoControl, "no step of %v leaves traffic to the control", x.Steps)
	}
	if p := float64(l.f.ErrorP); p <= cfg.ErrorAlpha {
		return l.say(
			RollBack,
			GenerationErrors,
			"%d of %d generations failed, the limit is %.3g %% (p %.2g)",
			ev.Generation.Failed,
			ev.Generation.Total,
			100*cfg.ErrorLimit,
			p,
		)
	}
	if v, broken := l.guardrails(); broken {
		return v
	}
	if x.Step.Share >= 1 {
		return l.full(ev, x.Steps[deciding], deciding)
	}
	return l.compared(deciding)
}

// looker is one look at one experiment.
type looker struct {
	cfg Config
	x   control.ExperimentStatus
	f   Figures
}

func (l looker) say(a Action, r Rule, format string, args ...any) Verdict {
	return Verdict{Action: a, Rule: r, Why: fmt.Sprintf(format, args...), Figures: l.f}
}

// guardrails asks the other metrics: a roll-back comes before a hold.
func (l looker) guardrails() (Verdict, bool) {
	for _, action := range []Action{RollBack, Hold} {
		for _, g := range l.f.Guardrails {
			if g.State == GuardFailed && g.Action == action {
				return l.say(action, GuardrailBroken, "%s: %s", g.Metric, g.Why), true
			}
		}
	}
	return Verdict{}, false
}

// compared looks at a step with both arms.
func (l looker) compared(deciding int) Verdict {
	f, cfg := l.f, l.cfg
	if v, off := l.sampleRatio(); off {
		return v
	}
	rated := l.expectedClicks() >= cfg.MinClicks && f.Control.Units >= 2 && f.Treatment.Units >= 2
	if rated && f.Guard < 0 {
		return l.say(RollBack, CTRHarm, "the treatment's rate is below %g of the control's at every value of the interval", 1-cfg.Margin)
	}
	if missing := l.missing(); missing != "" {
		// Users who come back add impressions and no units: the smallest sample may be out of reach for ever.
		if n := f.Control.Impressions + f.Treatment.Impressions; cfg.MaxImpressions > 0 && n >= cfg.MaxImpressions {
			return l.say(
				Inconclusive,
				MaxSamples,
				"after %d impressions the smaller arm still lacks %s: begin with a larger share, or ask for less",
				n,
				missing,
			)
		}
		return l.say(Hold, MinSamples, "the smaller arm waits for %s", missing)
	}
	if l.x.Step.Index != deciding {
		return l.next(StepComplete, "enough data at share %g and no guard fired", l.x.Step.Share)
	}
	return l.decide()
}

// sampleRatio asks whether the units of the figures fell into the arms as planned.
func (l looker) sampleRatio() (Verdict, bool) {
	limit := SRMLimit(l.cfg, l.x.Steps)
	if !(float64(l.f.SRMP) <= limit) { // or not known: that is no alarm, and Unseen or missing hold the ramp
		return Verdict{}, false
	}
	return l.say(
		RollBack,
		SampleRatio,
		"%d units in control and %d in treatment at a planned share of %g (p %.2g, alarm at %.2g): find out why before trying again",
		l.f.Control.Units,
		l.f.Treatment.Units,
		l.f.Step.Share,
		float64(l.f.SRMP),
		limit,
	), true
}

// missing names what the smaller arm has too little of; empty: nothing.
func (l looker) missing() string {
	f, cfg := l.f, l.cfg
	var out []string
	if n := min(f.Control.Units, f.Treatment.Units); n < max(cfg.MinUnits, 2) {
		out = append(out, fmt.Sprintf("units (%d of %d)", n, cfg.MinUnits))
	}
	if n := min(f.Control.Impressions, f.Treatment.Impressions); n < cfg.MinImpressions {
		out = append(out, fmt.Sprintf("impressions (%d of %d)", n, cfg.MinImpressions))
	}
	if n := l.expectedClicks(); n < cfg.MinClicks {
		out = append(out, fmt.Sprintf("expected clicks (%.1f of %g)", math.Floor(10*n)/10, cfg.MinClicks))
	}
	if len(out) == 0 && f.unknown != "" { // enough by the configuration, and still nothing is known
		out = append(out, "an interval: "+f.unknown)
	}
	return strings.Join(out, ", ")
}

// decide applies the two-sided sequence on the deciding step.
func (l looker) decide() Verdict {
	f := l.f
	switch {
	case f.LiftLow > 0:
		if l.x.Step.Index+1 < len(l.x.Steps) {
			v := l.next(LiftAboveZero, "lift %s: all traffic goes to the treatment, to be confirmed", liftText(f))
			// The relative interval may have no upper bound, which JSON cannot say.
			v.Next.Shown = &control.Shown{
				Low:          float64(f.LiftLow),
				High:         float64(f.LiftHigh),
				RelativeLow:  float64(f.RelativeLow),
				RelativeHigh: min(float64(f.RelativeHigh), math.MaxFloat64),
			}
			return v
		}
		return l.say(Promote, LiftAboveZero, "lift %s", liftText(f))
	case f.LiftHigh < 0:
		return l.say(RollBack, LiftBelowZero, "lift %s", liftText(f))
	case l.cfg.MaxUnits > 0 && f.Control.Units+f.Treatment.Units >= l.cfg.MaxUnits,
		l.cfg.MaxImpressions > 0 && f.Control.Impressions+f.Treatment.Impressions >= l.cfg.MaxImpressions:
		return l.say(Inconclusive, MaxSamples, "%d units and %d impressions show no difference: lift %s",
			f.Control.Units+f.Treatment.Units, f.Control.Impressions+f.Treatment.Impressions, liftText(f))
	}
	return l.say(Hold, Undecided, "lift %s spans zero", liftText(f))
}

// full looks at the step at share 1: wait for samples, then promote on the deciding step's data, complete by
// then. The interval of the complete data is cut to the one that made the step: the intervals of a confidence
// sequence hold at all looks together, so their intersection does, and a look that happens to spread more
// takes nothing back. Data can contradict what was shown; then nothing is promoted.
//
// The sample at share 1 is there to see that nothing breaks, and decides nothing, so the wait for it has the same end
// as at every step: where fewer users than the smallest sample come back for ever, MaxImpressions.
func (l looker) full(ev Evidence, share float64, deciding int) Verdict {
	seen := l.f.Treatment
	l.f = figures(l.cfg, l.x, control.Step{Index: deciding, Share: share}, ev.Deciding, ev)
	enough := seen.Units >= l.cfg.MinUnits && seen.Impressions >= l.cfg.MinImpressions
	if over := l.cfg.MaxImpressions > 0 && seen.Impressions >= l.cfg.MaxImpressions; !enough && !over {
		return l.say(
			Hold,
			MinSamples,
			"at share 1: %d of %d units, %d of %d impressions",
			seen.Units,
			l.cfg.MinUnits,
			seen.Impressions,
			l.cfg.MinImpressions,
		)
	}
	if v, off := l.sampleRatio(); off {
		return v
	}
	// Only a person can go to share 1 before the deciding step has its smallest sample; control gets no more of it.
	if missing := l.missing(); missing != "" {
		return l.say(
			Inconclusive,
			MinSamples,
			"the deciding step (share %g) was left while its smaller arm lacked %s, and at share 1 nothing can be compared any more",
			share,
			missing,
		)
	}
	if s := l.x.Step.Shown; s != nil {
		complete := liftText(l.f)
		l.f.LiftLow, l.f.LiftHigh = max(l.f.LiftLow, Num(s.Low)), min(l.f.LiftHigh, Num(s.High))
		l.f.RelativeLow, l.f.RelativeHigh = max(l.f.RelativeLow, Num(s.RelativeLow)), min(l.f.RelativeHigh, Num(s.RelativeHigh))
		if l.f.Lift < l.f.LiftLow || l.f.Lift > l.f.LiftHigh {
			return l.say(
				Inconclusive,
				LiftLost,
				"lift %s at share %g, now that its data are complete, contradicts the %+.4f to %+.4f points that were shown",
				complete,
				share,
				100*s.Low,
				100*s.High,
			)
		}
	}
	switch {
	case l.f.LiftLow > 0:
		return l.say(Promote, LiftAboveZero, "lift %s at share %g, and share 1 held", liftText(l.f), share)
	case l.f.LiftHigh < 0:
		return l.say(RollBack, LiftBelowZero, "lift %s at share %g, with its data complete", liftText(l.f), share)
	}
	return l.say(Inconclusive, LiftLost, "lift %s at share %g spans zero now that its data are complete", liftText(l.f), share)
}

func (l looker) next(r Rule, format string, args ...any) Verdict {
	v := l.say(Step, r, format, args...)
	i := l.x.Step.Index + 1
	v.Next = &control.Step{Index: i, Share: l.x.Steps[i]}
	return v
}

// expectedClicks of the smaller arm at the pooled rate. The observed ones will not do: a treatment that gets
// no clicks at all would never be compared.
func (l looker) expectedClicks() float64 {
	d := l.f.Control.Impressions + l.f.Treatment.Impressions
	if d == 0 {
		return 0
	}
	pooled := float64(l.f.Control.Clicks+l.f.Treatment.Clicks) / float64(d)
	return pooled * float64(min(l.f.Control.Impressions, l.f.Treatment.Impressions))
}

// SRMLimit is the p at which the sample-ratio guard fires: its alpha is divided among the steps with both arms.
func SRMLimit(cfg Config, steps []float64) float64 { return cfg.SRMAlpha / float64(bothArms(steps)) }

func bothArms(steps []float64) int {
	n := 0
	for _, s := range steps {
		if s < 1 {
			n++
		}
	}
	return max(n, 1)
}

func liftText(f Figures) string {
	return fmt.Sprintf("%+.4f points [%+.4f, %+.4f]", 100*float64(f.Lift), 100*float64(f.LiftLow), 100*float64(f.LiftHigh))
}

// Decision is the verdict in the form of the control log. Figures that are not finite become 0 there, with an
// interval of [-1, 1]; the looks keep them as they were.
func (v Verdict) Decision() control.Decision {
	f := v.Figures
	or := func(n Num, def float64) float64 {
		if x := float64(n); x-x == 0 {
			return x
		}
		return def
	}
	return control.Decision{
		Outcome: control.Outcome(v.Action), Rule: string(v.Rule),
		Lift: or(f.Relative, 0), LiftLow: or(f.RelativeLow, -1), LiftHigh: or(f.RelativeHigh, 1), P: or(f.P, 1), SRMP: finite(f.SRMP),
		Impressions: f.Control.Impressions + f.Treatment.Impressions, Unknown: f.unknown,
	}
}

// finite is the number, nil where it is not known.
func finite(n Num) *float64 {
	if x := float64(n); x-x == 0 {
		return &x
	}
	return nil
}

// Ok says whether nothing speaks against the treatment, as far as is known: the look has not ended against it, and there were
// data enough to know.
func (v Verdict) Ok() bool { return v.Enough && !v.Failed() }

// Failed says whether the look has ended against the treatment. Neither Ok nor Failed: nothing is known yet.
func (v Verdict) Failed() bool { return v.Action == RollBack || v.Action == Inconclusive }
