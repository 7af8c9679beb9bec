package stats

import (
	"math"
	"math/rand/v2"
	"testing"
)

// The capital of the bets is confseq's after every value, at any mean, to 1e-9.
func TestBetsEqualConfseq(t *testing.T) {
	ref := reference[struct {
		Cases []struct {
			Name    string
			X       []float64
			Capital []struct {
				Alpha, M float64
				After    []int
				Log      []float64
			}
		}
	}](t, "confseq_betting", "0.0.11")
	if len(ref.Cases) != 5 {
		t.Fatalf("%d cases", len(ref.Cases))
	}
	for _, c := range ref.Cases {
		if len(c.Capital) != 8 {
			t.Fatalf("%s: %d capitals", c.Name, len(c.Capital))
		}
		for _, k := range c.Capital {
			b := NewBets(k.Alpha)
			for i, x := range c.X {
				b.See(x, k.M)
				for j, n := range k.After {
					if n == i+1 {
						same(t, c.Name, b.LogE(), k.Log[j])
					}
				}
			}
		}
	}
}

// unitsAt has users whose rates differ: impressions of one to twenty, clicks that go together.
func unitsAt(rng *rand.Rand, n int, rate float64) []Unit {
	out := make([]Unit, n)
	for i := range out {
		own := rate * 2 * rng.Float64()
		d := 1 + rng.IntN(20)
		out[i] = Unit{binomial(rng, d, own), float64(d)}
	}
	return out
}

// At every look from the first unit on the true rate is possible, in all but alpha of the runs.
func TestExactRateHoldsFromTheFirstUnit(t *testing.T) {
	const alpha, rate = 0.05, 0.05
	missed := 0
	for run := range runs {
		units := unitsAt(rand.New(rand.NewPCG(31, uint64(run))), 500, rate)
		b := NewBets(alpha)
		for _, u := range units {
			b.See((u.M+rate*(20-u.D))/20, rate)
			if b.LogE() >= -math.Log(alpha) {
				missed++
				break
			}
		}
	}
	if bound := binomialBound(alpha); missed > bound {
		t.Errorf("the true rate was excluded in %d of %d runs, at most %d go with alpha", missed, runs, bound)
	}
}

func TestExactIntervals(t *testing.T) {
	rng := rand.New(rand.NewPCG(32, 1))
	a, b := unitsAt(rng, 3000, 0.05), unitsAt(rng, 3000, 0.2)
	iv, err := ExactLift(a, b, 20, 0.05)
	if err != nil || !(iv.Low > 0 && iv.High < 0.3) {
		t.Errorf("5 %% against 20 %%: %+v, %v", iv, err)
	}
	// The interval's edges are where the capital reaches 1/alpha.
	rate, err := ExactRate(a, 20, 0.05)
	if err != nil {
		t.Fatal(err)
	}
	for _, edge := range []float64{rate.Low, rate.High} {
		near(t, "capital at the edge", logExact(a, 20, 0.05, edge), math.Log(1/0.05), 1e-6)
	}
	// Two units say next to nothing; units that are all alike are no certainty.
	two, err := ExactLift([]Unit{{1, 10}, {1, 10}}, []Unit{{2, 10}, {2, 10}}, 10, 0.05)
	if err != nil || two.Low > -0.5 || two.High < 0.5 {
		t.Errorf("two units an arm: %+v, %v", two, err)
	}
	for _, bad := range [][]Unit{{{1, 21}}, {{2, 1}}, {{math.NaN(), 1}}, {{-1, 1}}} {
		if _, err := ExactRate(bad, 20, 0.05); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
	for _, most := range []float64{0, -1, math.Inf(1), math.NaN()} {
		if _, err := ExactRate(a, most, 0.05); err == nil {
			t.Errorf("at most %g impressions were taken", most)
		}
	}
}
