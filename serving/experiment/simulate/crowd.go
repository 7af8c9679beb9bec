package simulate

import (
	"math"
	"math/bits"
	"math/rand/v2"
)

// World says who comes: users that are drawn independently, each with impressions and clicks.
type World struct {
	// CTR is clicks by impressions over all users.
	CTR float64 `json:"ctr"`
	// Concentration is a + b of the Beta distribution of the users' own rates: two impressions of one user are
	// correlated by 1 / (Concentration + 1).
	Concentration float64 `json:"concentration"`
	// Tail and Shift make a user have d impressions with a probability that falls as (d + Shift)^-Tail,
	// d = 1 .. MaxImpressions.
	Tail           float64 `json:"tail"`
	Shift          float64 `json:"shift"`
	MaxImpressions int     `json:"max_impressions"`
	// Slope makes a user's mean rate fall as d^-Slope: who sees many ads clicks less often.
	Slope float64 `json:"slope"`
}

// Ordinary users: 4 % click-through, 13 impressions each on average, and impressions of one user correlated by 0.05.
func Ordinary() World {
	return World{CTR: 0.04, Concentration: 20, Tail: 4, Shift: 25, MaxImpressions: 200, Slope: 0.1}
}

// Strong is over-dispersion of another kind: a heavier tail, and a correlation of 0.2.
func Strong() World {
	return World{CTR: 0.04, Concentration: 4, Tail: 2.6, Shift: 6, MaxImpressions: 300, Slope: 0.1}
}

// pair is one user's clicks and impressions.
type pair struct{ m, d uint16 }

// crowd draws users from the joint distribution of clicks and impressions, by Walker's alias method: one random
// number and one look into a table for a user, exact to rounding.
type crowd struct {
	cells []cell
	// dbar is the mean of impressions by user; e2 is the mean square of m - CTR d: the variance of the rate over n
	// users is e2 / (dbar^2 n).
	dbar, e2 float64
}

// cell gives own with probability cut / 2^64, else other.
type cell struct {
	cut        uint64
	own, other pair
}

// newCrowd makes the table of a world in which every rate is multiplied by factor.
func newCrowd(w World, factor float64) *crowd {
	n := w.MaxImpressions
	share := make([]float64, n+1) // of users, by impressions
	var sum, dbar, weighted float64
	for d := 1; d <= n; d++ {
		share[d] = math.Pow(float64(d)+w.Shift, -w.Tail)
		sum += share[d]
	}
	for d := 1; d <= n; d++ {
		share[d] /= sum
		dbar += share[d] * float64(d)
		weighted += share[d] * math.Pow(float64(d), 1-w.Slope)
	}
	c := &crowd{dbar: dbar}
	ctr := w.CTR * factor
	var pairs []pair
	var probability []float64
	for d := 1; d <= n; d++ {
		mean := min(ctr*math.Pow(float64(d), -w.Slope)*dbar/weighted, 1)
		for m, p := range betaBinomial(d, mean*w.Concentration, (1-mean)*w.Concentration) {
			pairs = append(pairs, pair{uint16(m), uint16(d)})
			probability = append(probability, share[d]*p)
			e := float64(m) - ctr*float64(d)
			c.e2 += share[d] * p * e * e
		}
	}
	c.cells = alias(pairs, probability)
	return c
}

// betaBinomial is the distribution of clicks out of d impressions when the rate is Beta(a, b).
func betaBinomial(d int, a, b float64) []float64 {
	ln := 0.0 // of P(0) = prod (b + i) / (a + b + i)
	for i := range d {
		ln += math.Log((b + float64(i)) / (a + b + float64(i)))
	}
	p := make([]float64, d+1)
	for m := range p {
		p[m] = math.Exp(ln)
		ln += math.Log(float64(d-m) * (a + float64(m)) / (float64(m+1) * (b + float64(d-m) - 1)))
	}
	return p
}

// alias is Vose's construction of Walker's table.
func alias(pairs []pair, p []float64) []cell {
	sum := 0.0
	for _, x := range p {
		sum += x
	}
	var small, large []int
	left := make([]float64, len(p))
	for i, x := range p {
		left[i] = x / sum * float64(len(p))
		if left[i] < 1 {
			small = append(small, i)
		} else {
			large = append(large, i)
		}
	}
	cells := make([]cell, len(p))
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		cells[s] = cell{uint64(left[s] * (1 << 63) * 2), pairs[s], pairs[l]}
		left[l] -= 1 - left[s]
		if left[l] < 1 {
			large = large[:len(large)-1]
			small = append(small, l)
		}
	}
	for _, i := range append(small, large...) { // what is left is 1 to rounding
		cells[i] = cell{math.MaxUint64, pairs[i], pairs[i]}
	}
	return cells
}

func (c *crowd) draw(rng *rand.Rand) (m, d float64) {
	// The high word is the cell; the low one is uniform within it, in steps of len(cells) / 2^64.
	i, u := bits.Mul64(rng.Uint64(), uint64(len(c.cells)))
	x := &c.cells[i]
	p := x.other
	if u < x.cut {
		p = x.own
	}
	return float64(p.m), float64(p.d)
}

// sigma is the standard deviation of the difference of rates times the root of the users in both arms, for arms
// with these crowds.
func sigma(control, treatment *crowd, share float64) float64 {
	return math.Sqrt(control.e2/(control.dbar*control.dbar*(1-share)) + treatment.e2/(treatment.dbar*treatment.dbar*share))
}
