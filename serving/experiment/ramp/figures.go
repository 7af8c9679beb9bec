package ramp

import (
	"encoding/json"
	"errors"
	"maps"
	"math"
	"slices"

	"ctrloop/internal/stats"
	"ctrloop/schemas/control"
)

// Sums are what both arms of one step have seen, over mature impressions only.
type Sums struct {
	Control   stats.RatioSums `json:"control"`
	Treatment stats.RatioSums `json:"treatment"`
	Apart     Apart           `json:"apart"`
}

// Apart are impressions of the experiment that belong to no unit of either arm. They are shown, and stop nothing.
type Apart struct {
	Foreign   int64 `json:"foreign_variant"` // of a variant that the experiment does not have
	Anonymous int64 `json:"without_user"`    // without the user that the experiment randomises by
}

// Counts are attempts at generating a creative.
type Counts struct {
	Total  int64 `json:"total"`
	Failed int64 `json:"failed"`
}

// Num is a number that may be missing: NaN and infinities become null in JSON.
type Num float64

// MarshalJSON writes null for what is not a finite number.
func (n Num) MarshalJSON() ([]byte, error) {
	if f := float64(n); !math.IsNaN(f) && !math.IsInf(f, 0) {
		return json.Marshal(f)
	}
	return []byte("null"), nil
}

// UnmarshalJSON reads null as NaN.
func (n *Num) UnmarshalJSON(raw []byte) error {
	f := math.NaN()
	if string(raw) != "null" {
		if err := json.Unmarshal(raw, &f); err != nil {
			return err
		}
	}
	*n = Num(f)
	return nil
}

// Arm is one arm's figures.
type Arm struct {
	Units       int64 `json:"units"`
	Impressions int64 `json:"impressions"`
	Clicks      int64 `json:"clicks"` // clicked impressions
	CTR         Num   `json:"ctr"`
	Low         Num   `json:"ctr_low"` // always-valid interval of CTR
	High        Num   `json:"ctr_high"`
}

// Figures are what a look saw. Rates are fractions of 1; relative ones are fractions of the control's rate.
type Figures struct {
	Step         control.Step `json:"step"` // whose data these are
	Control      Arm          `json:"control"`
	Treatment    Arm          `json:"treatment"`
	Lift         Num          `json:"lift_absolute"`
	LiftLow      Num          `json:"lift_low"`
	LiftHigh     Num          `json:"lift_high"`
	Relative     Num          `json:"lift_relative"`
	RelativeLow  Num          `json:"lift_relative_low"`
	RelativeHigh Num          `json:"lift_relative_high"`
	P            Num          `json:"p_always_valid"`
	Guard        Num          `json:"guard_high"`   // upper bound of R_B - (1-margin) R_A: below 0 rolls back
	GuardLow     Num          `json:"guard_low"`    // lower bound: above 0 the loss is within the margin for sure
	SRMP         Num          `json:"srm_p"`        // of the sample ratio; null: not tested, which is not "as planned"
	MDE          Num          `json:"mde_absolute"` // difference found with probability 0.8 at this size
	Generation   Counts       `json:"generation"`
	ErrorP       Num          `json:"generation_error_p"`
	Guardrails   []Guard      `json:"guardrails,omitempty"` // the other metrics, in the order of the configuration
	Apart        Apart        `json:"impressions_apart"`
	// Missing says why figures are not known, by their names here; what is not known is null, or for an interval that bounds
	// nothing the whole range.
	Missing map[string]string `json:"null_because,omitempty"`
	// Broken says why the sums cannot be right; empty: they can.
	Broken string `json:"broken,omitempty"`
	// Unread are the figures that could not be read at this look, with the reasons: nothing is decided for the treatment then.
	Unread []string `json:"unread,omitempty"`

	unknown string // why the lift is bound by nothing; empty: it is bound
}

// missingSRM is the name of the sample ratio's p among what is missing.
const missingSRM = "srm_p"

// Describe computes the figures of a step without judging them.
func Describe(cfg Config, x control.ExperimentStatus, step control.Step, ev Evidence) Figures {
	return figures(cfg, x, step, ev.Now, ev)
}

// NoFigures are those of a look that saw nothing.
func NoFigures(step control.Step, why string) Figures {
	nan := Num(math.NaN())
	return Figures{Step: step, Lift: nan, LiftLow: -1, LiftHigh: 1, Relative: nan, RelativeLow: -1, RelativeHigh: Num(math.Inf(1)),
		P: 1, Guard: 1, GuardLow: -1, SRMP: nan, MDE: nan, ErrorP: 1, unknown: why, Missing: map[string]string{missingSRM: why}}
}

// DescribeArm gives one arm's figures, with the interval of the sequence.
func DescribeArm(s stats.RatioSums, q stats.Sequence) Arm { return arm(s, q) }

// figures computes everything that the rules look at. What the data do not bound is NaN or infinite.
func figures(cfg Config, x control.ExperimentStatus, step control.Step, s Sums, ev Evidence) Figures {
	gen := ev.Generation
	q := stats.Sequence{Alpha: x.Alpha, NStar: x.NStar}
	nan := Num(math.NaN())
	f := Figures{
		Step: step, Control: arm(s.Control, q), Treatment: arm(s.Treatment, q), Generation: gen,
		Lift: nan, LiftLow: -1, LiftHigh: 1, Relative: nan, RelativeLow: -1, RelativeHigh: Num(math.Inf(1)),
		P: 1, Guard: 1, GuardLow: -1, SRMP: nan, MDE: nan, Missing: map[string]string{},
		ErrorP:     Num(stats.PFromLogE(stats.RateExceeds(gen.Failed, gen.Total, cfg.ErrorLimit))),
		Guardrails: guards(cfg.Guardrails, ev.Metrics, x.NStar),
		Apart:      s.Apart, Unread: ev.Unread,
	}
	f.testSampleRatio(cfg, s)
	l, err := stats.Compare(s.Control, s.Treatment, q)
	switch {
	case errors.Is(err, stats.ErrSums):
		f.Broken, f.unknown = err.Error(), err.Error()
	case err != nil: // an arm without impressions: nothing is known yet
		f.unknown = err.Error()
	}
	if err != nil {
		for _, name := range []string{"lift_absolute", "lift_relative", "mde_absolute", "p_always_valid"} {
			f.Missing[name] = f.unknown
		}
		return f
	}
	f.unknown = l.Unknown
	if maps.Copy(f.Missing, l.Missing()); len(f.Missing) == 0 {
		f.Missing = nil
	}
	g := stats.Guard(s.Control, s.Treatment, cfg.Margin, stats.Sequence{Alpha: cfg.GuardAlpha, NStar: x.NStar})
	f.Lift, f.LiftLow, f.LiftHigh, f.P = Num(l.Absolute), Num(l.Interval.Low), Num(l.Interval.High), Num(l.P)
	f.Relative, f.RelativeLow, f.RelativeHigh = Num(l.Relative), Num(l.RelativeI.Low), Num(l.RelativeI.High)
	f.GuardLow, f.Guard = Num(g.Low), Num(g.High)
	if l.Unknown == "" {
		f.MDE = Num(stats.MDE(q, l.Units, l.SE*math.Sqrt(l.Units), 0.8))
	}
	return f
}

// testSampleRatio holds the units of both arms against the step's shares, or says why nobody can.
func (f *Figures) testSampleRatio(cfg Config, s Sums) {
	switch {
	case f.Step.Share >= 1:
		f.Missing[missingSRM] = "at share 1 nobody is drawn"
		return
	case s.Control.N+s.Treatment.N == 0:
		f.Missing[missingSRM] = "no units yet"
		return
	}
	ln, err := stats.SampleRatio([]int64{s.Control.N, s.Treatment.N}, []float64{1 - f.Step.Share, f.Step.Share}, cfg.SRMPrior)
	if err != nil { // a guard that cannot see
		f.Missing[missingSRM] = err.Error()
		f.Unread = append(slices.Clone(f.Unread), "sample ratio: "+err.Error())
		return
	}
	f.SRMP = Num(stats.PFromLogE(ln))
}

func arm(s stats.RatioSums, q stats.Sequence) Arm {
	iv := stats.RateInterval(s, q)
	return Arm{Units: s.N, Impressions: int64(s.D), Clicks: int64(s.M), CTR: Num(s.Rate()), Low: Num(iv.Low), High: Num(iv.High)}
}
