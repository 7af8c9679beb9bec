package stats

import (
	"errors"
	"fmt"
	"math"
)

// Stratum is a part of an experiment in which the treatment's share did not change: a step of a ramp.
type Stratum struct {
	Share     float64 // of the treatment, in (0, 1]; nothing is compared at 1
	Control   RatioSums
	Treatment RatioSums
}

// ErrStrata is returned for strata that do not say how the arms were shared.
var ErrStrata = errors.New("stratified comparison: shares must lie in (0, 1]")

// ErrNoStrata is returned where nothing can be compared.
var ErrNoStrata = errors.New("stratified comparison: no stratum has units and both arms")

// OverlapWeight is the weight of an impression whose arm had the given probability: 1 - p, so 1 - share in the
// treatment and share in the control. Weighted so, each stratum has the same expected weight in both arms,
// share (1 - share) of its impressions, whatever the ramp does: a rate that drifts while the share grows moves
// both weighted rates alike. Where the share never changes, weights change nothing. These are the overlap
// weights of Li, Morgan and Zaslavsky (JASA 113, 2018), those with the least variance when strata are alike.
func OverlapWeight(probability float64) float64 { return 1 - probability }

// OverlapUnits are n units at a treatment share, counted as units of an even split: 4 share (1 - share) n. In
// this clock the variance of the weighted difference grows at one rate in all strata.
func OverlapUnits(n, share float64) float64 { return 4 * share * (1 - share) * n }

// Weighted are the sums of units whose impressions all have the weight w.
func (s RatioSums) Weighted(w float64) RatioSums {
	return RatioSums{s.N, w * s.M, w * s.D, w * w * s.MM, w * w * s.DD, w * w * s.MD}
}

// Stratify merges the strata into one pair of weighted sums and the units of [OverlapUnits], for
// [CompareWeighted]. It takes units of different strata for different units. Where they come back from stratum
// to stratum, it claims too little variance (a unit that stays in its arm brings its own rate along): weight
// their impressions with [OverlapWeight], add these up by unit and arm, and Observe the totals instead. A unit
// that was in both arms makes the difference steadier than that variance says, never less so.
func Stratify(strata []Stratum) (control, treatment RatioSums, units float64, err error) {
	for i, s := range strata {
		if !(s.Share > 0 && s.Share <= 1) {
			return control, treatment, 0, fmt.Errorf("%w: stratum %d has %g", ErrStrata, i, s.Share)
		}
		if s.Share == 1 {
			continue
		}
		control = control.Add(s.Control.Weighted(OverlapWeight(1 - s.Share)))
		treatment = treatment.Add(s.Treatment.Weighted(OverlapWeight(s.Share)))
		units += OverlapUnits(float64(s.Control.N+s.Treatment.N), s.Share)
	}
	return control, treatment, units, nil
}

// CompareWeighted is [Compare] on weighted sums, with the clock of the sequence given. The relative lift is that
// of every stratum where they agree on it, and else their mean by weight and control's clicks. The variance
// needs no change: RateVariance is made of residuals of whole units, and the part of it that comes from rates
// which differ between strata is what chance does to the units of a stratum in either arm.
//
// The interval is a confidence sequence over all looks at all strata: the weighted difference is a sum of
// independent terms whose weights were fixed before them ([WS], the sequence for changing means and variances).
func CompareWeighted(control, treatment RatioSums, units float64, q Sequence) (Lift, error) {
	if !(units > 0) || math.IsInf(units, 0) {
		return Lift{}, fmt.Errorf("weighted comparison: %g units: want a positive, finite number", units)
	}
	// A sequence knows n only in units of NStar: another NStar is another clock.
	if n := float64(control.N + treatment.N); n > 0 {
		q.NStar *= n / units
	}
	if err := checkArms(control, treatment, q); err != nil {
		return Lift{}, err
	}
	l := plainContrast(control, treatment).lift(float64(control.N+treatment.N), q, tooFewWeighted(control, treatment))
	l.Units = units
	return l, nil
}

// tooFewWeighted is [TooFew] where weighted clicks are no counts: it asks for effective numbers of units and, in each
// arm, of clicks.
func tooFewWeighted(control, treatment RatioSums) string {
	units := min(control.EffectiveUnits(), treatment.EffectiveUnits())
	clicks := min(effective(control.M, control.MM), effective(treatment.M, treatment.MM))
	if !(units >= LeastUnits) || !(clicks >= LeastClicks) {
		return fmt.Sprintf("too little data in the smaller arm: %.3g of %d effective units, %.3g of %d effective clicks",
			units, LeastUnits, clicks, LeastClicks)
	}
	return ""
}

// effective is (sum x)^2 / sum x^2, the number of equal values that weigh as much; 0 of nothing.
func effective(sum, squares float64) float64 {
	if squares == 0 {
		return 0
	}
	return sum / squares * sum
}

// CompareAcross is the lift within categories, put together: [CompareStratified] with the treatment's share of the units of
// each, so that a category which one arm met more often weighs the same in both. Where the arms met the categories alike
// it says what the pooled lift says; where they did not, the pooled one may have the wrong sign (Simpson's paradox). A unit
// counts in each category that it met. Categories without both arms are left out.
func CompareAcross(categories []Category, q Sequence) (Lift, error) {
	var strata []Stratum
	for _, c := range categories {
		if n := float64(c.Control.N + c.Treatment.N); c.Control.D > 0 && c.Treatment.D > 0 {
			strata = append(strata, Stratum{Share: float64(c.Treatment.N) / n, Control: c.Control, Treatment: c.Treatment})
		}
	}
	return CompareStratified(strata, q)
}

// Trap says that the pooled lift and the one within categories contradict each other: they have different signs, or
// the pooled interval leaves the other out.
func Trap(pooled, within Lift) bool {
	a, b := pooled.Absolute, within.Relative
	return a > 0 && b < 0 || a < 0 && b > 0 || pooled.Unknown == "" && (b < pooled.RelativeI.Low || b > pooled.RelativeI.High)
}

// CompareStratified is [CompareWeighted] of [Stratify].
func CompareStratified(strata []Stratum, q Sequence) (Lift, error) {
	control, treatment, units, err := Stratify(strata)
	if err != nil {
		return Lift{}, err
	}
	if units == 0 {
		return Lift{}, ErrNoStrata
	}
	return CompareWeighted(control, treatment, units, q)
}
