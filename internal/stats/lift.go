package stats

import (
	"fmt"
	"math"
)

// Interval is a range of values; a missing bound is infinite.
type Interval struct{ Low, High float64 }

// Lift compares the treatment's rate with the control's. Differences are in rate units (0.001 is a tenth
// of a per cent point), relative ones are fractions of the control's rate (0.05 is +5 %).
type Lift struct {
	Absolute  float64  // R_B - R_A
	Interval  Interval // of Absolute, valid at every look
	SE        float64  // of Absolute
	P         float64  // always-valid, of "no difference"
	LogE      float64  // logarithm of the e-value that P is made from
	Relative  float64  // R_B / R_A - 1; NaN without control clicks
	RelativeI Interval // of Relative, valid at every look: excludes 0 exactly when Interval does
	Units     float64  // n_A + n_B, the clock of the sequence
	// Unknown says why the data bound nothing ([TooFew], or no variation in them); empty: they do. The interval is then
	// all of [-1, 1], P is 1 and the e-value 1: what is always true.
	Unknown string
}

// Compare gives the lift of treatment over control with the sequence q. SE^2 = v_A/n_A + v_B/n_B by the
// delta method on each arm, the smaller one's at least what the larger one's spread gives in so small an arm,
// sigma^2 = n SE^2 with n = n_A + n_B. With less data than an asymptotic interval needs it says so in Unknown.
//
// The relative interval is Fieller's [F] with the sequence's critical value in place of the normal one: it
// holds every theta - 1 for which the sequence of R_B - theta R_A covers 0. Unlike the delta method on the
// ratio it agrees with the absolute interval about zero, except when the control's rate is not significantly above
// zero: the ratio then has no bound, and the interval is infinite.
func Compare(control, treatment RatioSums, q Sequence) (Lift, error) {
	if err := checkArms(control, treatment, q); err != nil {
		return Lift{}, err
	}
	return plainContrast(control, treatment).lift(float64(control.N+treatment.N), q, TooFew(control, treatment)), nil
}

// checkArms says what is wrong with the sums or the sequence.
func checkArms(control, treatment RatioSums, q Sequence) error {
	if err := q.Validate(); err != nil {
		return err
	}
	for _, a := range []struct {
		name string
		s    RatioSums
	}{{"control", control}, {"treatment", treatment}} {
		if err := a.s.Validate(); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		if a.s.D == 0 {
			return fmt.Errorf("%s has no impressions: there is no rate to compare", a.name)
		}
	}
	return nil
}

// plainContrast is the contrast of two arms without a covariate.
func plainContrast(control, treatment RatioSums) contrast {
	va, vb := spread(control, treatment, 1)
	return contrast{d0: treatment.Rate(), d1: control.Rate(), v0: vb, v2: va}
}

// contrast is the family D(r) = d0 - r d1 with variance V(r) = v0 + v1 r + v2 r^2: its value at r = 1 is the
// absolute difference of two rates, its root their ratio.
type contrast struct{ d0, d1, v0, v1, v2 float64 }

// Missing says of the figures that are not there why they are not, by their names in JSON; nil: all are there. It goes beside
// every null.
func (l Lift) Missing() map[string]string {
	out := map[string]string{}
	if math.IsNaN(l.Absolute) {
		out["lift_absolute"] = l.Unknown
	}
	if math.IsNaN(l.Relative) {
		out["lift_relative"] = "the control has no clicks"
	}
	switch {
	case l.Unknown != "":
		for _, name := range []string{"low", "high", "se", "p_always_valid", "relative_low", "relative_high"} {
			out[name] = l.Unknown
		}
	case math.IsInf(l.RelativeI.High, 1):
		out["relative_high"] = "no upper bound: the control's rate is not told from 0"
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// noSpread is why nothing is known where no unit differs from another.
const noSpread = "the data show no variation"

// lift looks at the contrast after so many units; lacks says why the data bound nothing, empty: they may.
func (x contrast) lift(units float64, q Sequence, lacks string) Lift {
	l := Lift{Absolute: x.d0 - x.d1, Interval: Interval{-1, 1}, Relative: math.NaN(), RelativeI: Interval{-1, math.Inf(1)},
		Units: units, P: 1, Unknown: lacks}
	if x.d1 > 0 {
		l.Relative = x.d0/x.d1 - 1
	}
	se2 := x.v0 + x.v1 + x.v2
	if l.Unknown == "" && !(se2 > 0) {
		l.Unknown = noSpread
	}
	if l.Unknown != "" {
		return l
	}
	l.SE = math.Sqrt(se2)
	half := q.HalfWidth(units, l.SE)
	l.Interval = Interval{l.Absolute - half, l.Absolute + half}
	l.LogE = q.LogE(units, l.Absolute, 0, l.SE)
	l.P = PFromLogE(l.LogE)
	l.RelativeI = x.fieller(q.z(units))
	return l
}

// fieller solves D(r)^2 <= z^2 V(r) for r and returns r - 1.
func (x contrast) fieller(z float64) Interval {
	a, b, c := x.d1*x.d1-z*z*x.v2, x.d0*x.d1+z*z*x.v1/2, x.d0*x.d0-z*z*x.v0
	if a <= 0 { // the control's rate is not significantly above zero: no upper bound
		return Interval{-1, math.Inf(1)}
	}
	root := math.Sqrt(max(0, b*b-a*c))
	return Interval{max((b-root)/a, 0) - 1, (b+root)/a - 1}
}

// Inferiority compares the treatment with a share of the control's rate: the contrast R_B - (1-margin) R_A
// with a bound on each side, each of error q.Alpha on its own ([WS] eq. 134). Low > 0: the treatment is not
// worse than the margin allows. High < 0: it is. It trusts each arm's own variance, which a small arm does not know:
// [Guard] is what decides.
func Inferiority(control, treatment RatioSums, margin float64, q Sequence) Interval {
	k := 1 - margin
	v := treatment.RateVariance() + k*k*control.RateVariance()
	if !(v > 0) {
		return Interval{-1, 1}
	}
	d := treatment.Rate() - k*control.Rate()
	half := q.HalfWidthOneSided(float64(control.N+treatment.N), math.Sqrt(v))
	return Interval{d - half, d + half}
}

// RateInterval is the two-sided confidence sequence of one rate, clipped to [0,1]; all of [0,1] while there is too
// little data for it ([LeastUnits], [LeastClicks]) or no variation.
func RateInterval(s RatioSums, q Sequence) Interval {
	v := s.RateVariance()
	if !(v > 0) || s.tooFew() != "" {
		return Interval{0, 1}
	}
	half := q.HalfWidth(float64(s.N), math.Sqrt(v))
	return Interval{max(0, s.Rate()-half), min(1, s.Rate()+half)}
}
