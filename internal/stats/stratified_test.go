package stats

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"
)

// stratum draws units of both arms at a share, whose rate is base in both.
func stratum(rng *rand.Rand, n int, share, base float64) Stratum {
	s := Stratum{Share: share}
	c := crowd{rng}
	for range n {
		m, d := c.user(base, 1)
		if rng.Float64() < share {
			s.Treatment.Observe(m, d)
		} else {
			s.Control.Observe(m, d)
		}
	}
	return s
}

// At one constant share of 1/2 the weights change nothing at all, and at another one only the clock.
func TestOneStratumIsTheComparisonItself(t *testing.T) {
	rng := rand.New(rand.NewPCG(21, 1))
	q := DefaultSequence()
	for _, share := range []float64{0.5, 0.1} {
		s := stratum(rng, 4000, share, 0.04)
		want, err := Compare(s.Control, s.Treatment, q)
		if err != nil {
			t.Fatal(err)
		}
		got, err := CompareStratified([]Stratum{s, {Share: 1, Treatment: s.Treatment}}, q)
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(got.Absolute-want.Absolute) > 1e-12 || math.Abs(got.SE/want.SE-1) > 1e-12 || math.Abs(got.Relative-want.Relative) > 1e-12 {
			t.Errorf("share %g: %+v, want %+v", share, got, want)
		}
		if clock := 4 * share * (1 - share) * want.Units; math.Abs(got.Units-clock) > 1e-9 {
			t.Errorf("share %g: clock %g, want %g", share, got.Units, clock)
		}
		if share == 0.5 && (math.Abs(got.P-want.P) > 1e-12 || math.Abs(got.RelativeI.Low-want.RelativeI.Low) > 1e-12) {
			t.Errorf("an even split: %+v, want %+v", got, want)
		}
	}
}

// A rate that halves while the share grows makes pooled arms differ by tens of per cent without any effect; the
// weighted ones do not differ, and their standard error is the spread that is seen.
func TestSimpsonsTrap(t *testing.T) {
	const runs = 300
	q := DefaultSequence()
	var pooled, sum, squares, claimed float64
	for run := range runs {
		rng := rand.New(rand.NewPCG(22, uint64(run)))
		strata := []Stratum{stratum(rng, 1500, 0.05, 0.06), stratum(rng, 1500, 0.2, 0.045), stratum(rng, 1500, 0.5, 0.03)}
		l, err := CompareStratified(strata, q)
		if err != nil {
			t.Fatal(err)
		}
		var c, b RatioSums
		for _, s := range strata {
			c, b = c.Add(s.Control), b.Add(s.Treatment)
		}
		pooled += b.Rate()/c.Rate() - 1
		sum += l.Absolute
		squares += l.Absolute * l.Absolute
		claimed += l.SE
	}
	mean, sd := sum/runs, math.Sqrt(squares/runs-sum*sum/runs/runs)
	if pooled/runs > -0.15 {
		t.Errorf("pooled lift %.3f on average: the trap is too shallow to test anything", pooled/runs)
	}
	if se := sd / math.Sqrt(runs); math.Abs(mean) > 4*se {
		t.Errorf("stratified difference %g on average, want 0 within %g", mean, 4*se)
	}
	if r := claimed / runs / sd; r < 0.88 || r > 1.12 { // 4 standard errors of a standard deviation of 300
		t.Errorf("standard error claimed / seen = %.3f", r)
	}
}

// Users who come back in every stratum: sums by stratum claim too little variance, weighted totals by unit and
// arm claim enough.
func TestReturningUnitsNeedTotalsByUnit(t *testing.T) {
	const runs, users = 400, 400
	shares := []float64{0.4, 0.45, 0.5}
	q := DefaultSequence()
	var sum, squares, byStratum, byUnit float64
	for run := range runs {
		rng := rand.New(rand.NewPCG(23, uint64(run)))
		strata := make([]Stratum, len(shares))
		var control, treatment RatioSums
		units := 0.0
		for range users {
			rate, bucket := 0.1*rng.Float64(), rng.Float64()
			if rng.IntN(4) == 0 {
				rate += 0.5
			}
			var m, d [2]float64
			for k, share := range shares {
				arm, p := 0, 1-share
				if bucket < share {
					arm, p = 1, share
				}
				clicks := 0.0
				for range 10 {
					if rng.Float64() < rate {
						clicks++
					}
				}
				m[arm] += OverlapWeight(p) * clicks
				d[arm] += OverlapWeight(p) * 10
				strata[k].Share = share
				if arm == 1 {
					strata[k].Treatment.Observe(clicks, 10)
				} else {
					strata[k].Control.Observe(clicks, 10)
				}
				units += OverlapUnits(1, share)
			}
			if d[0] > 0 {
				control.Observe(m[0], d[0])
			}
			if d[1] > 0 {
				treatment.Observe(m[1], d[1])
			}
		}
		naive, err := CompareStratified(strata, q)
		if err != nil {
			t.Fatal(err)
		}
		l, err := CompareWeighted(control, treatment, units, q)
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(naive.Absolute-l.Absolute) > 1e-12 {
			t.Fatalf("the two are one estimate: %g and %g", naive.Absolute, l.Absolute)
		}
		sum += l.Absolute
		squares += l.Absolute * l.Absolute
		byStratum += naive.SE
		byUnit += l.SE
	}
	sd := math.Sqrt(squares/runs - sum*sum/runs/runs)
	if r := byStratum / runs / sd; r > 0.8 {
		t.Errorf("by stratum, claimed / seen = %.3f: users are too much alike to test anything", r)
	}
	if r := byUnit / runs / sd; r < 0.9 || r > 1.2 {
		t.Errorf("by unit, claimed / seen = %.3f", r)
	}
}

func TestStrataThatCannotBeCompared(t *testing.T) {
	var one RatioSums
	one.Observe(1, 10)
	for _, share := range []float64{0, -1, 1.5, math.NaN()} {
		if _, err := CompareStratified([]Stratum{{share, one, one}}, DefaultSequence()); !errors.Is(err, ErrStrata) {
			t.Errorf("share %g: %v", share, err)
		}
	}
	for _, strata := range [][]Stratum{nil, {{1, RatioSums{}, one}}} {
		if _, err := CompareStratified(strata, DefaultSequence()); err == nil {
			t.Errorf("%v: no error", strata)
		}
	}
	if _, err := CompareWeighted(one, one, math.NaN(), DefaultSequence()); err == nil {
		t.Error("a clock that is no number is accepted")
	}
	if l, err := CompareStratified([]Stratum{{0.5, one, one}}, DefaultSequence()); err != nil || l.Unknown == "" ||
		l.Interval != (Interval{-1, 1}) {
		t.Errorf("one unit an arm: %+v, %v", l, err)
	}
}
