package stats

import (
	"math"
	"math/rand/v2"
	"testing"
)

// A small arm whose true loss is the margin: the plain bound calls harm too often, the guard does not, and it still
// finds a real loss.
func TestGuardOfASmallArm(t *testing.T) {
	q := Sequence{Alpha: 0.05, NStar: 5000}
	const margin, share = 0.05, 0.03
	count := func(runs int, factor float64) (plain, guard int) {
		for run := range runs {
			c := crowd{rand.New(rand.NewPCG(15, uint64(run)))}
			var a, b RatioSums
			var p, g bool
			for range 8 {
				for range 1000 {
					if c.rng.Float64() < share {
						b.Observe(c.user(0.03, factor))
					} else {
						a.Observe(c.user(0.03, 1))
					}
				}
				p = p || Inferiority(a, b, margin, q).High < 0
				g = g || Guard(a, b, margin, q).High < 0
			}
			if p {
				plain++
			}
			if g {
				guard++
			}
		}
		return plain, guard
	}
	plain, guard := count(runs, 1-margin)
	t.Logf("loss equal to the margin: plain bound %d, guard %d of %d", plain, guard, runs)
	if bound := binomialBound(q.Alpha); guard > bound || plain <= bound {
		t.Errorf("harm called in %d runs by the guard (want at most %d), in %d by the plain bound (want more)", guard, bound, plain)
	}
	if _, found := count(50, 0.4); found < 45 {
		t.Errorf("a loss of 60 %% was found in %d of 50 runs", found)
	}
}

// With arms of one size and the same spread it is the plain bound, and it never claims more.
func TestGuardIsInferiorityMadeWider(t *testing.T) {
	q := DefaultSequence()
	rng := rand.New(rand.NewPCG(16, 1))
	c := crowd{rng}
	var a, b RatioSums
	for range 500 {
		m, d := c.user(0.05, 1)
		a.Observe(m, d)
		b.Observe(m, d)
	}
	if got, want := Guard(a, b, 0.1, q), Inferiority(a, b, 0.1, q); math.Abs(got.Low-want.Low) > 1e-12 ||
		math.Abs(got.High-want.High) > 1e-12 {
		t.Errorf("equal arms: %v, want %v", got, want)
	}
	for range 100 {
		a.Observe(c.user(0.05, 1))
		for _, x := range [][2]RatioSums{{a, b}, {b, a}} {
			got, want := Guard(x[0], x[1], 0.1, q), Inferiority(x[0], x[1], 0.1, q)
			if got.Low > want.Low+1e-12 || got.High < want.High-1e-12 {
				t.Errorf("%v is narrower than %v", got, want)
			}
		}
	}
	if got := Guard(RatioSums{}, b, 0.1, q); got != (Interval{-1, 1}) {
		t.Errorf("without a control: %v", got)
	}
}
