package stats

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

func near(t *testing.T, name string, got, want, tol float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tol*max(1, math.Abs(want))) {
		t.Errorf("%s = %.15g, want %.15g", name, got, want)
	}
}

// The formulas of the design written out as they stand there, against the code's rearranged forms.
func TestFormulasAsPublished(t *testing.T) {
	a := []([2]float64){{1, 10}, {0, 7}, {2, 30}, {0, 1}, {1, 12}}
	b := []([2]float64){{3, 11}, {0, 9}, {2, 25}, {1, 2}, {0, 8}, {2, 14}}
	textbook := func(xs [][2]float64) (r, vn float64) {
		n := float64(len(xs))
		var m, d float64
		for _, x := range xs {
			m, d = m+x[0], d+x[1]
		}
		mb, db := m/n, d/n
		r = m / d
		var mm, dd, md float64
		for _, x := range xs {
			mm += (x[0] - mb) * (x[0] - mb) / (n - 1)
			dd += (x[1] - db) * (x[1] - db) / (n - 1)
			md += (x[0] - mb) * (x[1] - db) / (n - 1)
		}
		return r, (mm - 2*r*md + r*r*dd) / (db * db) / n
	}
	var sa, sb RatioSums
	for _, x := range a {
		sa.Observe(x[0], x[1])
	}
	for _, x := range b {
		sb.Observe(x[0], x[1])
	}
	ra, va := textbook(a)
	rb, vb := textbook(b)
	// Eleven units are too few for Compare, which would say nothing.
	l := contrast{d0: sb.Rate(), d1: sa.Rate(), v0: sb.RateVariance(), v2: sa.RateVariance()}.lift(float64(sa.N+sb.N), DefaultSequence(), "")
	alpha, nstar, n := 0.05, 5000.0, 11.0
	se := math.Sqrt(va + vb)
	sigma := math.Sqrt(n) * se
	rho := math.Sqrt((-2*math.Log(alpha) + math.Log(-2*math.Log(alpha)+1)) / nstar)
	half := sigma * math.Sqrt(2*(n*rho*rho+1)/(n*n*rho*rho)*math.Log(math.Sqrt(n*rho*rho+1)/alpha))
	s := n * (rb - ra) * (rb - ra) / (se * se)
	e := math.Exp(rho*rho*s/(2*(n*rho*rho+1))) / math.Sqrt(n*rho*rho+1)
	near(t, "absolute", l.Absolute, rb-ra, 1e-12)
	near(t, "se", l.SE, se, 1e-12)
	near(t, "low", l.Interval.Low, rb-ra-half, 1e-12)
	near(t, "high", l.Interval.High, rb-ra+half, 1e-12)
	near(t, "p", l.P, min(1, 1/e), 1e-12)
	near(t, "relative", l.Relative, rb/ra-1, 1e-12)
	rho1 := math.Sqrt((-2*math.Log(2*alpha) + math.Log(-2*math.Log(2*alpha)+1)) / nstar)
	one := sigma * math.Sqrt(2*(n*rho1*rho1+1)/(n*n*rho1*rho1)*math.Log(1+math.Sqrt(n*rho1*rho1+1)/(2*alpha)))
	near(t, "one-sided", DefaultSequence().HalfWidthOneSided(n, se), one, 1e-12)
}

// GrowthBook publishes for its sequential test (docs, "N* = 5000, alpha 0.05") that the interval is tightest at n*.
func TestSequenceIsTightestAtNStar(t *testing.T) {
	q := DefaultSequence()
	at := q.z(q.NStar)
	for _, n := range []float64{100, 1000, 4000, 6500, 20000, 1e6} {
		if q.z(n) <= at {
			t.Errorf("z(%g) = %g is not above z(n*) = %g", n, q.z(n), at)
		}
	}
}

func drawSums(t *rapid.T, name string) RatioSums {
	var s RatioSums
	for range rapid.IntRange(2, 40).Draw(t, name) {
		d := rapid.IntRange(0, 50).Draw(t, "d")
		s.Observe(float64(rapid.IntRange(0, d).Draw(t, "m")), float64(d))
	}
	return s
}

func TestIntervalAndPAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawSums(t, "a"), drawSums(t, "b")
		if a.D == 0 || b.D == 0 {
			t.Skip("no impressions")
		}
		q := Sequence{Alpha: rapid.Float64Range(0.001, 0.4).Draw(t, "alpha"), NStar: rapid.Float64Range(10, 1e5).Draw(t, "nstar")}
		l, err := Compare(a, b, q)
		if err != nil {
			t.Fatal(err)
		}
		excludes := l.Interval.Low > 0 || l.Interval.High < 0
		if math.Abs(l.P-q.Alpha) > 1e-9 && excludes != (l.P < q.Alpha) {
			t.Fatalf("interval %+v with p %g at alpha %g", l.Interval, l.P, q.Alpha)
		}
		// A control whose rate cannot be told from zero has no bounded ratio: the relative interval is then
		// everything, and only then.
		unbounded := math.IsInf(l.RelativeI.High, 1)
		if va := a.RateVariance(); l.Unknown == "" && a.M > 0 {
			if z := q.HalfWidth(l.Units, l.SE) / l.SE; unbounded != (a.Rate()*a.Rate() <= z*z*va) {
				t.Fatalf("control rate %g, half width %g, relative %+v", a.Rate(), z*math.Sqrt(va), l.RelativeI)
			}
		}
		if a.M > 0 && l.Unknown == "" && !unbounded { // the relative interval is about the same test
			edge := math.Abs(l.Interval.Low) < 1e-12 || math.Abs(l.Interval.High) < 1e-12
			rel := l.RelativeI.Low > 1e-12 || l.RelativeI.High < -1e-12
			if !edge && excludes != rel {
				t.Fatalf("absolute %+v and relative %+v disagree about zero", l.Interval, l.RelativeI)
			}
			if l.Relative < l.RelativeI.Low-1e-9 || l.Relative > l.RelativeI.High+1e-9 {
				t.Fatalf("relative lift %g outside its interval %+v", l.Relative, l.RelativeI)
			}
		}
	})
}

func TestSumsMerge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawSums(t, "a"), drawSums(t, "b")
		if a.Add(b) != b.Add(a) || a.Add(RatioSums{}) != a {
			t.Fatal("Add does not merge")
		}
		if err := a.Add(b).Validate(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestNothingObservedClaimsNothing(t *testing.T) {
	var a, b RatioSums
	for range 50 {
		a.Observe(0, 4)
		b.Observe(0, 4)
	}
	l, err := Compare(a, b, DefaultSequence())
	if err != nil {
		t.Fatal(err)
	}
	if l.Unknown == "" || l.Interval != (Interval{-1, 1}) || l.P != 1 || !math.IsNaN(l.Relative) {
		t.Errorf("no clicks at all gave %+v", l)
	}
	if _, err := Compare(a, RatioSums{}, DefaultSequence()); err == nil {
		t.Error("an arm without impressions was compared")
	}
	if _, err := Compare(RatioSums{N: 1, M: math.NaN(), D: 1}, a, DefaultSequence()); err == nil {
		t.Error("NaN was compared")
	}
	if _, err := Compare(a, b, Sequence{Alpha: 1.5, NStar: 1}); err == nil {
		t.Error("alpha 1.5 was taken")
	}
}

// Two arms, prior 1: the factor of one unit is 1 (the prior mean is the plan), and small cases follow from
// the Dirichlet-multinomial by hand: (1, 1) at halves is [G(1)/G(3)] [G(1.5)/G(.5)]^2 / (1/4) = 1/2.
func TestSampleRatioByHand(t *testing.T) {
	for _, c := range []struct {
		counts []int64
		shares []float64
		want   float64
	}{
		{[]int64{0, 0}, []float64{.5, .5}, 1},
		{[]int64{1, 0}, []float64{.5, .5}, 1},
		{[]int64{0, 1}, []float64{.99, .01}, 1},
		{[]int64{1, 1}, []float64{.5, .5}, 0.5},
		{[]int64{2, 0}, []float64{.5, .5}, 1.5},
	} {
		ln, err := SampleRatio(c.counts, c.shares, 1)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "BF", math.Exp(ln), c.want, 1e-12)
	}
	for _, c := range []struct {
		counts []int64
		shares []float64
		prior  float64
	}{
		{[]int64{1, -1}, []float64{.5, .5}, 1}, {[]int64{1, 1}, []float64{.5, .6}, 1}, {[]int64{1, 1}, []float64{1, 0}, 1},
		{[]int64{1, 1}, []float64{.5, .5}, 0}, {[]int64{1}, []float64{1}, 1}, {[]int64{1, 1}, []float64{math.NaN(), .5}, 1},
	} {
		if _, err := SampleRatio(c.counts, c.shares, c.prior); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
}

// E of the mixture integrates numerically to what the closed form says.
func TestRateExceedsIsTheMixture(t *testing.T) {
	for _, c := range []struct {
		x, n  int64
		limit float64
	}{{3, 20, 0.05}, {0, 20, 0.05}, {20, 20, 0.5}, {1, 100, 0.05}} {
		sum, steps := 0.0, 200000
		for i := range steps {
			q := c.limit + (1-c.limit)*(float64(i)+0.5)/float64(steps)
			sum += math.Exp(float64(c.x)*math.Log(q/c.limit) + float64(c.n-c.x)*math.Log((1-q)/(1-c.limit)))
		}
		near(t, "log E", RateExceeds(c.x, c.n, c.limit), math.Log(sum/float64(steps)), 1e-6)
	}
	if RateExceeds(40, 100, 0.05) < math.Log(1e6) {
		t.Error("40 errors of 100 against a limit of 5 % is no strong evidence")
	}
}

func TestPlanning(t *testing.T) {
	q := DefaultSequence()
	n := UnitsForHalfWidth(q, 0.2, 0.004)
	near(t, "width at the planned size", q.HalfWidth(n, 0.2/math.Sqrt(n)), 0.004, 1e-9)
	if m := MDE(q, n, 0.2, 0.8); m <= 0.004 || m > 0.006 {
		t.Errorf("MDE = %g, want a little above the half-width 0.004", m)
	}
	if !math.IsInf(UnitsForHalfWidth(q, 0.2, 0), 1) {
		t.Error("a width of zero takes for ever")
	}
}

func TestWilsonKnownValue(t *testing.T) {
	iv := Wilson(10, 100, 0.05) // R: prop.test(10, 100, correct = FALSE)
	near(t, "low", iv.Low, 0.05522914, 1e-6)
	near(t, "high", iv.High, 0.17436566, 1e-6)
}

// A sound ramp from 10 % to 50 % looks mismatched only to a test that ignores the ramp; a drift that is too small
// to see in any phase adds up over all of them.
func TestSampleRatioAcrossARamp(t *testing.T) {
	sound := []SharePhase{{[]int64{9010, 990}, []float64{0.9, 0.1}}, {[]int64{5050, 4950}, []float64{0.5, 0.5}}}
	got, err := SampleRatioRamp(sound, 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	if got.PNew < 0.9 || got.PAny < 0.9 || len(got.LogE) != 2 {
		t.Errorf("a sound ramp gave %+v", got)
	}
	near(t, "product", got.PNew, PFromLogE(got.LogE[0]+got.LogE[1]), 1e-12)
	pooled, err := SampleRatio([]int64{14060, 5940}, []float64{0.5, 0.5}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if PFromLogE(pooled) > 1e-9 {
		t.Error("pooled over the ramp, nothing is noticed: the example is too easy")
	}
	var drift []SharePhase
	for range 5 {
		drift = append(drift, SharePhase{[]int64{10180, 9820}, []float64{0.5, 0.5}})
	}
	if got, err = SampleRatioRamp(drift, 5, 2000); err != nil {
		t.Fatal(err)
	}
	if got.PNew > 0.05 || got.PAny < 0.05 {
		t.Errorf("five phases of 50.9 %% gave %+v, want it seen by the product alone", got)
	}
	one, err := SampleRatioRamp([]SharePhase{{[]int64{600, 400}, []float64{0.5, 0.5}}}, 4, 1)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "union bound over planned phases", one.PAny, 4*one.PNew, 1e-9)
	if _, err := SampleRatioRamp(nil, 1, 1); err == nil {
		t.Error("no phases were taken")
	}
	if _, err := SampleRatioRamp([]SharePhase{{[]int64{1}, []float64{1}}}, 1, 1); err == nil {
		t.Error("one arm was taken")
	}
}

func TestUnitsToAlarm(t *testing.T) {
	for prior, want := range map[float64]float64{1: 52000, 100: 38000, 10000: 35000} {
		n, err := UnitsToAlarm([]float64{0.51, 0.49}, []float64{0.5, 0.5}, 0.01, prior)
		if err != nil || math.Abs(n-want) > 0.02*want {
			t.Errorf("prior %g: %g units, %v, want about %g", prior, n, err, want)
		}
		k := int64(n)
		ln, err := SampleRatio([]int64{k * 51 / 100, k - k*51/100}, []float64{0.5, 0.5}, prior)
		if err != nil || math.Abs(ln-math.Log(100)) > 0.1 {
			t.Errorf("prior %g: ln BF there is %g, want ln 100", prior, ln)
		}
	}
	if n, err := UnitsToAlarm([]float64{0.5, 0.5}, []float64{0.5, 0.5}, 0.01, 1); err != nil || !math.IsInf(n, 1) {
		t.Errorf("a sound split alarms after %g units, %v", n, err)
	}
	for _, bad := range [][]float64{{0.5, 0.6}, {1.5, -0.5}, {1}} {
		if _, err := UnitsToAlarm(bad, []float64{0.5, 0.5}, 0.01, 1); err == nil {
			t.Errorf("%v were taken", bad)
		}
	}
}

// The one-sided p is alpha exactly where the bound of error alpha touches.
func TestOneSidedPAndBoundAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := Sequence{Alpha: rapid.Float64Range(0.001, 0.3).Draw(t, "alpha"), NStar: rapid.Float64Range(10, 1e5).Draw(t, "nstar")}
		n, se := rapid.Float64Range(2, 1e6).Draw(t, "n"), rapid.Float64Range(1e-6, 1).Draw(t, "se")
		half := q.HalfWidthOneSided(n, se)
		if p := q.POneSided(n, half+1, 1, se); math.Abs(p-q.Alpha) > 1e-6*q.Alpha {
			t.Fatalf("p = %g at the bound of alpha %g", p, q.Alpha)
		}
		if q.POneSided(n, -half, 0, se) != 1 || q.POneSided(n, 2*half, 0, se) >= q.POneSided(n, half, 0, se) {
			t.Fatal("p does not fall with the difference")
		}
	})
}

func TestPowerAndItsInverse(t *testing.T) {
	q := DefaultSequence()
	for _, effect := range []float64{0.002, -0.002, 0.05} {
		n := UnitsToDetect(q, 0.2, effect, 0.8)
		near(t, "power at the planned size", Power(q, n, 0.2, effect), 0.8, 1e-9)
		if n > 1 { // the minimum detectable effect at that size is this effect
			near(t, "MDE", MDE(q, n, 0.2, 0.8), math.Abs(effect), 1e-6)
		}
	}
	if !math.IsInf(UnitsToDetect(q, 0.2, 0, 0.8), 1) || Power(q, 1000, 0.2, 0) > q.Alpha {
		t.Error("no effect has no power beyond alpha")
	}
	var s RatioSums
	for i := range 1000 {
		s.Observe(float64(i%3), 10)
	}
	l, err := Compare(s, s, q) // halves: n is both arms' units
	if err != nil {
		t.Fatal(err)
	}
	near(t, "sigma of halves", SigmaFromBaseline(s, 0.5), l.SE*math.Sqrt(l.Units), 1e-12)
	if !math.IsNaN(SigmaFromBaseline(s, 1)) {
		t.Error("a share of 1 has no other arm")
	}
}
