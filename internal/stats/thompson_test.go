package stats

import (
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/mathext"
	"gonum.org/v1/gonum/stat/distuv"
	"pgregory.net/rapid"
)

func TestThompsonPropensitiesAddUpAndKeepTheirOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		arms := make([]Posterior, rapid.IntRange(1, 6).Draw(t, "arms"))
		for i := range arms {
			scale := math.Pow(10, rapid.Float64Range(-1, 7).Draw(t, "scale"))
			arms[i] = Posterior{0.01 + scale*rapid.Float64Range(0, 1).Draw(t, "a"), 0.01 + scale*rapid.Float64Range(0, 10).Draw(t, "b")}
		}
		got, err := ThompsonPropensities(arms)
		if err != nil {
			t.Fatal(err)
		}
		sum := 0.0
		for i, p := range got {
			if p < 0 || p > 1 {
				t.Fatalf("propensity %g of %+v", p, arms[i])
			}
			sum += p
		}
		if math.Abs(sum-1) > 1e-12 {
			t.Fatalf("they add up to %g", sum)
		}
		// An arm that is better in every way is picked more often.
		for i, a := range arms {
			for j, b := range arms {
				if a.A >= b.A && a.B <= b.B && got[i] < got[j]-1e-9 {
					t.Fatalf("%+v has %g, below the worse %+v with %g", a, got[i], b, got[j])
				}
			}
		}
	})
}

// Two arms with whole A: P(X_2 > X_1) is a finite sum of beta functions (Miller, "Formulas for Bayesian A/B
// testing", 2014), which shares nothing with the quadrature.
func TestThompsonPropensitiesOfTwoArmsInClosedForm(t *testing.T) {
	for _, c := range [][2]Posterior{
		{{1, 1}, {1, 1}}, {{3, 50}, {7, 60}}, {{20, 400}, {31, 420}}, {{1, 1000}, {200, 10}}, {{120, 9000}, {140, 9100}},
		{{300, 1e5}, {350, 1e5}},
	} {
		a, b := c[0], c[1]
		better := 0.0
		for i := 0.0; i < b.A; i++ {
			better += math.Exp(mathext.Lbeta(a.A+i, b.B+a.B) - math.Log(b.B+i) - mathext.Lbeta(1+i, b.B) - mathext.Lbeta(a.A, a.B))
		}
		got, err := ThompsonPropensities(c[:])
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(got[1]-better) > 1e-9 {
			t.Errorf("%v: %.12g, the closed form says %.12g", c, got[1], better)
		}
	}
}

// The frequencies of sampling itself: within five standard errors for every arm.
func TestThompsonPropensitiesAreTheFrequenciesOfSampling(t *testing.T) {
	const draws = 200_000
	for n, arms := range [][]Posterior{
		{{2, 60}, {3, 55}, {1, 20}, {9, 300}, {1, 1}},
		{{0.5, 0.5}, {0.2, 3}, {4, 4}},
		{{50, 5000}, {55, 5000}, {60, 5000}, {4, 200}},
	} {
		want, err := ThompsonPropensities(arms)
		if err != nil {
			t.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(21, uint64(n)))
		count := make([]float64, len(arms))
		for range draws {
			best, at := -1.0, 0
			for i, p := range arms {
				if x := (distuv.Beta{Alpha: p.A, Beta: p.B, Src: rng}).Rand(); x > best {
					best, at = x, i
				}
			}
			count[at]++
		}
		for i, p := range want {
			if se := math.Sqrt(p*(1-p)/draws) + 1e-9; math.Abs(count[i]/draws-p) > 5*se {
				t.Errorf("arm %+v was picked with frequency %g, its propensity is %g", arms[i], count[i]/draws, p)
			}
		}
	}
}

func TestThompsonPropensitiesRefuseWhatIsNoPosterior(t *testing.T) {
	for _, arms := range [][]Posterior{nil, {{0, 1}, {1, 1}}, {{1, -1}}, {{math.NaN(), 1}, {1, 1}}, {{1, math.Inf(1)}, {1, 1}}} {
		if got, err := ThompsonPropensities(arms); err == nil {
			t.Errorf("%v gave %v", arms, got)
		}
	}
}

func BenchmarkThompsonPropensities(b *testing.B) {
	arms := make([]Posterior, 8)
	for i := range arms {
		arms[i] = Posterior{1 + float64(i), 100 + 10*float64(i)}
	}
	for b.Loop() {
		if _, err := ThompsonPropensities(arms); err != nil {
			b.Fatal(err)
		}
	}
}
