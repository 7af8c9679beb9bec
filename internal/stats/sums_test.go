package stats

import (
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// drawUnits draws units as (m, d, m', d'), whole numbers unless real is set.
func drawUnits(t *rapid.T, name string, real bool) [][4]float64 {
	out := make([][4]float64, rapid.IntRange(0, 30).Draw(t, name))
	for i := range out {
		d, p := rapid.IntRange(0, 1000).Draw(t, "d"), rapid.IntRange(0, 1000).Draw(t, "d'")
		out[i] = [4]float64{float64(rapid.IntRange(0, d).Draw(t, "m")), float64(d), float64(rapid.IntRange(0, p).Draw(t, "m'")), float64(p)}
		if real {
			for j := range out[i] {
				out[i][j] *= 0.37
			}
		}
	}
	return out
}

func sumsOf(units [][4]float64) (s Sums) {
	for _, u := range units {
		s.Observe(u[0], u[1], u[2], u[3])
	}
	return s
}

// Any split of the units into parts, merged in any order, gives the sums of all of them: exactly for counts.
func TestMergingIsExactForCounts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := drawUnits(t, "a", false), drawUnits(t, "b", false), drawUnits(t, "c", false)
		x, y, z := sumsOf(a), sumsOf(b), sumsOf(c)
		all := sumsOf(append(append(append([][4]float64{}, a...), b...), c...))
		if x.Add(y).Add(z) != all || z.Add(y.Add(x)) != all || all.Add(Sums{}) != all {
			t.Fatalf("%+v, %+v, %+v do not merge to %+v", x, y, z, all)
		}
		if err := all.Validate(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestMergingIsAssociativeUpToRounding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x, y, z := sumsOf(drawUnits(t, "a", true)), sumsOf(drawUnits(t, "b", true)), sumsOf(drawUnits(t, "c", true))
		left, right := x.Add(y).Add(z), x.Add(y.Add(z))
		for i, v := range numbers(left) {
			if w := numbers(right)[i]; math.Abs(v-w) > 1e-14*math.Abs(w) {
				t.Fatalf("sum %d: %g and %g", i, v, w)
			}
		}
	})
}

// numbers are n and the 14 sums.
func numbers(s Sums) []float64 {
	return []float64{
		float64(s.N), s.M, s.D, s.MM, s.DD, s.MD, s.PreM, s.PreD, s.PreMM, s.PreDD, s.PreMD, s.MPreM, s.MPreD, s.DPreM, s.DPreD,
	}
}

// The forms over residuals against the 4x4 covariance matrix of the textbook, computed in two passes over the units.
func TestCupedAsPublished(t *testing.T) {
	rng := rand.New(rand.NewPCG(31, 0))
	draw := func(n int, lift float64) (units [][4]float64) {
		for range n {
			rate := 0.3 * rng.Float64()
			u := [4]float64{0, float64(1 + rng.IntN(20)), 0, float64(rng.IntN(20))}
			for range int(u[1]) {
				if rng.Float64() < rate*lift {
					u[0]++
				}
			}
			for range int(u[3]) {
				if rng.Float64() < rate {
					u[2]++
				}
			}
			units = append(units, u)
		}
		return units
	}
	type linear struct{ r, pre, vr, vpre, cov float64 }
	twoPass := func(units [][4]float64) (l linear) {
		n := float64(len(units))
		var mean [4]float64
		for _, u := range units {
			for i := range mean {
				mean[i] += u[i] / n
			}
		}
		var c [4][4]float64
		for _, u := range units {
			for i := range mean {
				for j := range mean {
					c[i][j] += (u[i] - mean[i]) * (u[j] - mean[j]) / (n - 1)
				}
			}
		}
		got := sumsOf(units).Covariance()
		for i := range c {
			for j := range c {
				near(t, "covariance", got[i][j], c[i][j], 1e-9)
			}
		}
		l.r, l.pre = mean[0]/mean[1], mean[2]/mean[3]
		g, h := [4]float64{1 / mean[1], -l.r / mean[1]}, [4]float64{2: 1 / mean[3], 3: -l.pre / mean[3]}
		for i := range c {
			for j := range c {
				l.vr += g[i] * c[i][j] * g[j] / n
				l.vpre += h[i] * c[i][j] * h[j] / n
				l.cov += g[i] * c[i][j] * h[j] / n
			}
		}
		return l
	}
	a, b := draw(400, 1), draw(300, 1.2)
	la, lb, all := twoPass(a), twoPass(b), twoPass(append(append([][4]float64{}, a...), b...))
	theta := all.cov / all.vpre
	radj := func(l linear) float64 { return l.r - theta*(l.pre-all.pre) }
	vadj := func(l linear) float64 { return l.vr - 2*theta*l.cov + theta*theta*l.vpre }
	q := DefaultSequence()
	sa, sb := sumsOf(a), sumsOf(b)
	got, err := CompareAdjusted(sa, sb, q)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "theta", got.Theta, theta, 1e-9)
	near(t, "absolute", got.Absolute, radj(lb)-radj(la), 1e-9)
	near(t, "relative", got.Relative, radj(lb)/radj(la)-1, 1e-9)
	near(t, "se", got.SE, math.Sqrt(vadj(la)+vadj(lb)), 1e-9)
	plain, err := Compare(sa.RatioSums, sb.RatioSums, q)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "reduction", got.Reduction, 1-(got.SE*got.SE)/(plain.SE*plain.SE), 1e-9)
	if got.Reduction < 0.1 {
		t.Errorf("rates that persist took away %g of the variance only", got.Reduction)
	}
	// The relative interval's ends are where the contrast's own interval touches zero.
	z := q.HalfWidth(got.Units, 1)
	wB := sb.PreD / (sa.PreD + sb.PreD)
	for _, end := range []float64{got.RelativeI.Low, got.RelativeI.High} {
		r := 1 + end
		k := theta * (1 - wB + wB*r)
		d := lb.r - r*la.r - k*(lb.pre-la.pre)
		v := lb.vr - 2*k*lb.cov + k*k*lb.vpre + r*r*la.vr - 2*r*k*la.cov + k*k*la.vpre
		near(t, "the contrast at an end", d*d, z*z*v, 1e-9)
		if math.Abs(d) < 1e-6 {
			t.Errorf("contrast %g at the end %g: the interval has no width", d, end)
		}
	}
}

func TestWithoutACovariateNothingIsAdjusted(t *testing.T) {
	var a, b Sums
	for i := range 50 {
		a.Observe(float64(i%3), 5, 0, 0)
		b.Observe(float64(i%4), 5, 0, 0)
	}
	got, err := CompareAdjusted(a, b, DefaultSequence())
	if err != nil {
		t.Fatal(err)
	}
	plain, err := Compare(a.RatioSums, b.RatioSums, DefaultSequence())
	if err != nil {
		t.Fatal(err)
	}
	if got.Lift != plain || got.Theta != 0 || got.Reduction != 0 {
		t.Errorf("%+v, want the plain lift %+v", got, plain)
	}
	broken := a
	broken.PreMM, broken.PreM = 1, 1e6
	if _, err := CompareAdjusted(broken, b, DefaultSequence()); err == nil {
		t.Error("impossible sums of the covariate were taken")
	}
}

// A/A with a covariate and a look at every batch: theta is learned from the same data, and alpha holds.
func TestCupedAAWithPeeking(t *testing.T) {
	q := Sequence{Alpha: 0.05, NStar: 5000}
	wrong, narrower := 0, 0
	for run := range runs {
		rng := rand.New(rand.NewPCG(32, uint64(run)))
		var arms [2]Sums
		hit := false
		var last AdjustedLift
		for range 20 {
			for range 2 * perLook {
				rate, u := 0.2*rng.Float64(), [2]float64{}
				for range 16 {
					if rng.Float64() < rate {
						u[0]++
					}
					if rng.Float64() < rate {
						u[1]++
					}
				}
				arms[rng.IntN(2)].Observe(u[0], 16, u[1], 16)
			}
			l, err := CompareAdjusted(arms[0], arms[1], q)
			if err != nil {
				t.Fatal(err)
			}
			hit = hit || l.P <= q.Alpha
			last = l
		}
		if hit {
			wrong++
		}
		if last.Reduction > 0.1 {
			narrower++
		}
	}
	t.Logf("adjusted: %d of %d A/A runs wrong, variance down by more than 10 %% in %d", wrong, runs, narrower)
	if bound := binomialBound(q.Alpha); wrong > bound {
		t.Errorf("%d of %d A/A runs wrong, at most %d are compatible with alpha", wrong, runs, bound)
	}
	if narrower < runs*9/10 {
		t.Errorf("the covariate helped in %d of %d runs only", narrower, runs)
	}
}
