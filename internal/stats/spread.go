package stats

import (
	"fmt"
	"math"
	"strings"
)

// What an asymptotic interval needs of each arm. Below it nothing is said: no interval, no p. The numbers come from
// simulation (docs/validity.md, "small"): with looks from the second unit on, treatment shares down to 1 % and
// errors down to 0.001, no cell of it is wrong more often than its alpha.
const (
	// LeastUnits is the least effective number of units, (sum d)^2 / sum d^2: one unit with most of the impressions
	// counts as one.
	LeastUnits = 20
	// LeastClicks is the least number of clicks that the arm is expected to have at the pooled rate, several of one
	// unit counting less, and the least number of impressions without one.
	LeastClicks = 10
	// RoundingOfSquares is the share of its terms below which a sum of squared residuals is rounding, not spread.
	RoundingOfSquares = 1e-12
)

// squaredResiduals is the sum of (m - R d)^2. Units that are all alike leave a residue of rounding: that is 0.
func (s RatioSums) squaredResiduals() float64 {
	r := s.Rate()
	e2 := s.MM - 2*r*s.MD + r*r*s.DD
	if e2 <= RoundingOfSquares*(s.MM+2*r*s.MD+r*r*s.DD) {
		return 0
	}
	return e2
}

// EffectiveUnits is (sum d)^2 / sum d^2: the number of units with equal impressions that know the rate as well. 0
// without impressions.
func (s RatioSums) EffectiveUnits() float64 { return effective(s.D, s.DD) }

// times says how many times as many effective units a has as b: constant weights on an arm change nothing in it.
func times(a, b RatioSums) float64 { return a.EffectiveUnits() / b.EffectiveUnits() }

// spread gives the variances of the rates of both arms. The smaller arm's is taken to be at least what it would be with
// the spread of the larger arm's units (docs/adr/0024, 0036): clicks are rare and few units bring many of them, so a
// small arm that happened to get few clicks has seen little of its own variance either; with none it has seen nothing
// of it. grow is how much larger the borrowed spread has to be, 1 where both arms are alike.
func spread(control, treatment RatioSums, grow float64) (va, vb float64) {
	va, vb = control.RateVariance(), treatment.RateVariance()
	if k := times(control, treatment); k >= 1 {
		return va, math.Max(vb, grow*k*va)
	}
	return math.Max(va, times(treatment, control)*vb), vb
}

// TooFew says what the data lack before an asymptotic interval of the lift may be made from them; empty: nothing. It
// asks for effective units, expected clicks and impressions without a click in each arm ([LeastUnits], [LeastClicks]).
// The clicks are those expected at the pooled rate, because asking for observed ones would never compare an arm that
// gets none.
func TooFew(control, treatment RatioSums) string {
	all := control.Add(treatment)
	return lacking(min(control.EffectiveUnits(), treatment.EffectiveUnits()), min(control.D, treatment.D), all)
}

// tooFew is [TooFew] of one arm, for the interval of its rate.
func (s RatioSums) tooFew() string { return lacking(s.EffectiveUnits(), s.D, s) }

// lacking judges the smaller arm by its effective units and impressions, at the rate of all.
func lacking(units, impressions float64, all RatioSums) string {
	if all.M == 0 || all.D == 0 {
		return "there are no clicks to go by"
	}
	var out []string
	rate := all.Rate()
	clicks := impressions * rate * (all.M / all.MM)
	without := impressions * (1 - rate)
	for _, x := range []struct {
		name        string
		have, least float64
	}{
		{"effective units", units, LeastUnits}, {"expected clicks", clicks, LeastClicks},
		{"impressions without a click", without, LeastClicks},
	} {
		if !(x.have >= x.least) {
			out = append(out, fmt.Sprintf("%.3g of %g %s", x.have, x.least, x.name))
		}
	}
	if len(out) == 0 {
		return ""
	}
	return "too little data in the smaller arm: " + strings.Join(out, ", ")
}
