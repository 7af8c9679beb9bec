package stats

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// A small treatment without any click has no variance of its own. Two thousand users of a control at 5.8 % say what to
// expect of ten more: a chance of one half to see none, so nothing is known; of 100 users with none, something is.
func TestAnArmWithoutClicksIsNotCertain(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 58))
	var control RatioSums
	for range 2000 {
		m := 0.0
		if rng.Float64() < 0.058 {
			m = 1
		}
		control.Observe(m, 1)
	}
	none := func(units int) (s RatioSums) {
		for range units {
			s.Observe(0, 1)
		}
		return s
	}
	for _, units := range []int{2, 10, 50} {
		l, err := Compare(control, none(units), DefaultSequence())
		if err != nil {
			t.Fatal(err)
		}
		if l.Unknown == "" || l.P != 1 || l.LogE != 0 || l.Interval != (Interval{-1, 1}) {
			t.Errorf("%d users without a click: %+v", units, l)
		}
	}
	l, err := Compare(control, none(400), DefaultSequence())
	if err != nil {
		t.Fatal(err)
	}
	// The spread of the control's users, in an arm of 400.
	near(t, "se", l.SE, math.Sqrt(control.RateVariance()*(1+2000.0/400)), 1e-12)
	if l.Unknown != "" || !(l.P < 0.05) || l.Interval.High >= 0 {
		t.Errorf("400 users without a click, 23 expected: %+v", l)
	}
}

// Units with equal rates leave a residue of rounding where their variance is 0. It is not a variance.
func TestUnitsThatAreAlikeHaveNoSpread(t *testing.T) {
	for d := 1.0; d < 60; d++ {
		for m := 0.0; m <= d; m++ {
			var s RatioSums
			for i := range 7 {
				s.Observe(m*float64(i+1), d*float64(i+1))
			}
			if v := s.RateVariance(); v != 0 {
				t.Fatalf("seven units at %g of %g have the variance %g", m, d, v)
			}
		}
	}
	var a, b RatioSums
	for range 2 {
		a.Observe(1, 10)
		b.Observe(2, 10)
	}
	l, err := Compare(a, b, DefaultSequence())
	if err != nil || l.Unknown == "" || l.P != 1 || l.Interval != (Interval{-1, 1}) {
		t.Errorf("two units an arm: %+v, %v", l, err)
	}
	if iv := RateInterval(a, DefaultSequence()); iv != (Interval{0, 1}) {
		t.Errorf("two units that are alike have the rate %+v", iv)
	}
}

// The form is the review's: few units, a look after each of them.
func TestAAWithLooksFromTheSecondUnit(t *testing.T) {
	const runs = 400
	for _, c := range []struct {
		d     int
		p     float64
		share float64
	}{{1, .1, .5}, {1, .5, .5}, {5, .1, .5}, {10, .1, .5}, {20, .05, .5}, {3, .3, .5}, {10, .05, .05}, {10, .05, .01}} {
		for _, alpha := range []float64{.05, .001} {
			t.Run(fmt.Sprintf("%d impressions, rate %g, share %g, alpha %g", c.d, c.p, c.share, alpha), func(t *testing.T) {
				rng := rand.New(rand.NewPCG(1, 2))
				q := Sequence{Alpha: alpha, NStar: 5000}
				bad, said := 0, 0
				for range runs {
					var arms [2]RatioSums
					found, informed := false, false
					for range 600 {
						k := 0
						if rng.Float64() < c.share {
							k = 1
						}
						arms[k].Observe(binomial(rng, c.d, c.p), float64(c.d))
						if arms[0].D == 0 || arms[1].D == 0 {
							continue
						}
						l, err := Compare(arms[0], arms[1], q)
						if err != nil {
							t.Fatal(err)
						}
						informed = informed || l.Unknown == ""
						found = found || l.P <= alpha
					}
					if found {
						bad++
					}
					if informed {
						said++
					}
				}
				if bound := binomialBound(alpha); bad > bound {
					t.Errorf("a difference in %d of %d A/A runs, at most %d go with alpha", bad, runs, bound)
				}
				if c.share == .5 && said == 0 {
					t.Error("not one run ever said anything: this tests nothing")
				}
			})
		}
	}
}

func binomial(rng *rand.Rand, n int, p float64) (k float64) {
	for range n {
		if rng.Float64() < p {
			k++
		}
	}
	return k
}

// Forty categories without a difference, of a few units each: a discovery in at most 5 % of the runs.
func TestCategoriesOfFewUnitsDiscoverNothing(t *testing.T) {
	const runs = 400
	for _, units := range []int{2, 3, 5, 10, 25, 60} {
		rng := rand.New(rand.NewPCG(3, uint64(units)))
		found := 0
		for range runs {
			categories := make([]Category, 40)
			for i := range categories {
				categories[i].Name = fmt.Sprint(i)
				for range units {
					categories[i].Control.Observe(binomial(rng, 10, .1), 10)
					categories[i].Treatment.Observe(binomial(rng, 10, .1), 10)
				}
			}
			got, err := CompareCategories(categories, DefaultSequence(), .05)
			if err != nil {
				t.Fatal(err)
			}
			for _, g := range got {
				if g.Discovered {
					found++
					break
				}
			}
		}
		if bound := binomialBound(.05); found > bound {
			t.Errorf("%d units an arm: a false discovery in %d of %d runs, at most %d go with 5 %%", units, found, runs, bound)
		}
	}
}

// A covariate must be one: not the outcome, and not something in which the arms differed beforehand.
func TestCovariateThatIsNone(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	fill := func(same, shifted bool) (arms [2]Sums) {
		for k := range arms {
			for range 3000 {
				own := 0.1 * 2 * rng.Float64()
				m, p := binomial(rng, 20, own), binomial(rng, 20, own)
				if shifted && k == 1 {
					p = binomial(rng, 20, 2*own)
				}
				if same {
					p = m
				}
				arms[k].Observe(m, 20, p, 20)
			}
		}
		return arms
	}
	for _, c := range []struct {
		name          string
		same, shifted bool
		refused       bool
	}{{"sound", false, false, false}, {"the outcome", true, false, true}, {"differs before the test", false, true, true}} {
		arms := fill(c.same, c.shifted)
		l, err := CompareAdjusted(arms[0], arms[1], DefaultSequence())
		if err != nil {
			t.Fatal(err)
		}
		plain, err := Compare(arms[0].RatioSums, arms[1].RatioSums, DefaultSequence())
		if err != nil {
			t.Fatal(err)
		}
		if (l.Refused != "") != c.refused || c.refused && (l.Lift != plain || l.Theta != 0) || !c.refused && !(l.Reduction > 0.1) {
			t.Errorf("%s: %+v", c.name, l)
		}
	}
}
