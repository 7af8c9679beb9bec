package stats

import (
	"errors"
	"fmt"
	"math"
)

// Unit is what one unit brought: M clicked impressions of D.
type Unit struct{ M, D float64 }

// ErrExact is returned for units that an exact interval cannot be made from.
var ErrExact = errors.New("exact interval")

// Bets is the capital of two gamblers who bet on the mean of a sequence in [0, 1], one that it lies above m, the
// other below, each with half of the stake ([WSR] section 4, the hedged capital process with predictable plug-in bets of
// section B.1). If the mean is m, given what came before, the capital is a martingale: it ever reaches 1/alpha with
// probability alpha at most, from the first value on, whatever the distribution.
type Bets struct {
	up, down float64 // logarithms of the capitals
	n        float64
	bet      float64 // sqrt(2 ln(2/alpha)): larger for a smaller error
	mean, s2 float64 // of what came before, with one made-up value at 1/2 of variance 1/4
}

// NewBets begins bets that are tuned to an error alpha.
func NewBets(alpha float64) *Bets {
	return &Bets{bet: math.Sqrt(2 * math.Log(2/alpha)), mean: 0.5, s2: 0.25}
}

// See plays one round about the mean m with the next value x.
func (b *Bets) See(x, m float64) {
	t := b.n + 1
	lambda := b.bet / math.Sqrt(t*math.Log1p(t)*b.s2)
	if x != m { // at m = 0 or 1 a bet may be without bound: nothing is won or lost by it where x is m
		b.up += math.Log1p(min(lambda, 0.5/m) * (x - m))
		b.down += math.Log1p(-min(lambda, 0.5/(1-m)) * (x - m))
	}
	b.mean = (b.mean*t + x) / (t + 1)
	b.s2 = (b.s2*t + (x-b.mean)*(x-b.mean)) / (t + 1)
	b.n = t
}

// LogE is the logarithm of the mean of both capitals, each from 1.
func (b *Bets) LogE() float64 {
	most, least := max(b.up, b.down), min(b.up, b.down)
	return most + math.Log1p(math.Exp(least-most)) - math.Ln2
}

// logExact is the logarithm of the e-value against the rate r after all units: with most the largest number of impressions
// that a unit can have, (m + r (most - d)) / most lies in [0, 1] and has the mean r if the rate is r.
func logExact(units []Unit, most, alpha, r float64) float64 {
	b := NewBets(alpha)
	for _, u := range units {
		b.See(min(1, (u.M+r*(most-u.D))/most), r)
	}
	return b.LogE()
}

// ExactRate is an interval of the rate sum m / sum d that holds at every look from the first unit on with probability
// 1 - alpha, whatever the distribution of the units, as long as they are alike and come one after another in this
// order (a betting confidence sequence, [WSR] theorem 3). Of a unit nothing is assumed but that it cannot have more than
// most impressions: a bound that must be known before the data are. It costs about 1,100 passes over the units.
func ExactRate(units []Unit, most, alpha float64) (Interval, error) {
	if !(most > 0) || math.IsInf(most, 0) || !(alpha > 0 && alpha < 1) {
		return Interval{}, fmt.Errorf("%w: at most %g impressions a unit, alpha %g: want a positive number, and alpha in (0,1)",
			ErrExact, most, alpha)
	}
	for i, u := range units {
		if !(u.M >= 0 && u.M <= u.D && u.D <= most) {
			return Interval{}, fmt.Errorf("%w: unit %d has %g clicks on %g impressions, and %g impressions were said to be the most that "+
				"one can have: the bound must be known beforehand and hold for every unit", ErrExact, i+1, u.M, u.D, most)
		}
	}
	const points = 1000
	at := func(j int) float64 { s := math.Sin(math.Pi / 2 * float64(j) / points); return s * s } // denser at both ends
	in := func(r float64) bool { return logExact(units, most, alpha, r) < -math.Log(alpha) }
	first, last := -1, -1
	for j := range points + 1 {
		if in(at(j)) {
			if first < 0 {
				first = j
			}
			last = j
		}
	}
	if first < 0 {
		return Interval{}, fmt.Errorf("%w: no rate is possible: the units are not alike, or not in the order in which they came", ErrExact)
	}
	edge := func(inside, outside float64) float64 {
		for range 40 {
			if mid := (inside + outside) / 2; in(mid) {
				inside = mid
			} else {
				outside = mid
			}
		}
		return outside
	}
	iv := Interval{0, 1}
	if first > 0 {
		iv.Low = edge(at(first), at(first-1))
	}
	if last < points {
		iv.High = edge(at(last), at(last+1))
	}
	return iv, nil
}

// ExactLift is an interval of the difference of the rates, treatment less control, that holds at every look from the
// first unit on with probability 1 - alpha: both rates by [ExactRate], each with half of the error. It is wider than the
// asymptotic one of [Compare] and is there before it.
func ExactLift(control, treatment []Unit, most, alpha float64) (Interval, error) {
	a, err := ExactRate(control, most, alpha/2)
	if err != nil {
		return Interval{}, fmt.Errorf("control: %w", err)
	}
	b, err := ExactRate(treatment, most, alpha/2)
	if err != nil {
		return Interval{}, fmt.Errorf("treatment: %w", err)
	}
	return Interval{b.Low - a.High, b.High - a.Low}, nil
}
