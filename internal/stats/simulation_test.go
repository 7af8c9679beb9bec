package stats

import (
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/stat/distuv"
)

// crowd draws users whose own rates differ (over-dispersed), so that impressions of one user go together.
type crowd struct{ rng *rand.Rand }

// user is one new user's (clicks, impressions) at base rate times factor: the rate is uniform on
// [0, 2] x base with a heavy minority at six times that, impressions are geometric with mean 8.
func (c crowd) user(base, factor float64) (m, d float64) {
	rate := base * factor * 2 * c.rng.Float64()
	if c.rng.IntN(20) == 0 {
		rate *= 6
	}
	n := 1 + int(math.Log(1-c.rng.Float64())/math.Log(1-1.0/8))
	for range n {
		if c.rng.Float64() < rate {
			m++
		}
	}
	return m, float64(n)
}

// trueLift of the crowd: rates are drawn apart from impressions, so the ratio of means is the mean rate.
func (c crowd) trueLift(base, factor float64) float64 {
	return base * (0.95 + 0.05*6) * (factor - 1)
}

const (
	runs      = 400
	perLook   = 100 // users an arm between looks
	lookCount = 40
)

// binomialBound is a count that a binomial(runs, p) exceeds with probability below 0.1 %.
func binomialBound(p float64) int {
	b := distuv.Binomial{N: runs, P: p}
	k := 0
	for b.CDF(float64(k)) < 0.999 {
		k++
	}
	return k
}

// A/A with a look at every batch: the sequence is wrong at most as often as it says, ever; the z-tests that
// are commonly used beside it are not, or this test could not fail.
func TestAAWithPeeking(t *testing.T) {
	q := Sequence{Alpha: 0.05, NStar: 5000}
	var sequence, deltaZ, naiveZ, srm int
	for run := range runs {
		c := crowd{rand.New(rand.NewPCG(11, uint64(run)))}
		var arms [2]RatioSums
		var hit [4]bool
		for range lookCount {
			for range 2 * perLook {
				m, d := c.user(0.03, 1)
				arms[c.rng.IntN(2)].Observe(m, d)
			}
			l, err := Compare(arms[0], arms[1], q)
			if err != nil {
				t.Fatal(err)
			}
			hit[0] = hit[0] || l.P <= q.Alpha
			hit[1] = hit[1] || math.Abs(l.Absolute)/l.SE > 1.96
			p := (arms[0].M + arms[1].M) / (arms[0].D + arms[1].D)
			hit[2] = hit[2] || math.Abs(l.Absolute)/math.Sqrt(p*(1-p)*(1/arms[0].D+1/arms[1].D)) > 1.96
			ln, err := SampleRatio([]int64{arms[0].N, arms[1].N}, []float64{.5, .5}, 1)
			if err != nil {
				t.Fatal(err)
			}
			hit[3] = hit[3] || PFromLogE(ln) <= 0.05
		}
		for i, n := range []*int{&sequence, &deltaZ, &naiveZ, &srm} {
			if hit[i] {
				*n++
			}
		}
	}
	t.Logf(
		"of %d A/A runs with %d looks: sequence %d, delta-method z %d, z per impression %d, sample ratio %d",
		runs,
		lookCount,
		sequence,
		deltaZ,
		naiveZ,
		srm,
	)
	if bound := binomialBound(q.Alpha); sequence > bound || srm > bound {
		t.Errorf("false positives: sequence %d, sample ratio %d of %d, at most %d are compatible with alpha", sequence, srm, runs, bound)
	}
	if naiveZ <= 2*binomialBound(0.05) || deltaZ <= binomialBound(0.05) {
		t.Errorf("the peeking z-tests should fail here (per impression %d, delta %d of %d): the simulation is too easy", naiveZ, deltaZ, runs)
	}
}

// With a true effect, the interval covers it at every look at once, absolutely and relatively, and the
// planted effect is found.
func TestCoverageAndPowerWithPeeking(t *testing.T) {
	q := Sequence{Alpha: 0.05, NStar: 5000}
	const base, factor = 0.03, 1.35
	missed, missedRelative, found := 0, 0, 0
	for run := range runs {
		c := crowd{rand.New(rand.NewPCG(12, uint64(run)))}
		want := c.trueLift(base, factor)
		var a, b RatioSums
		var miss, missRel, hit bool
		for range lookCount {
			for range perLook {
				a.Observe(c.user(base, 1))
				b.Observe(c.user(base, factor))
			}
			l, err := Compare(a, b, q)
			if err != nil {
				t.Fatal(err)
			}
			miss = miss || want < l.Interval.Low || want > l.Interval.High
			missRel = missRel || factor-1 < l.RelativeI.Low || factor-1 > l.RelativeI.High
			hit = hit || l.Interval.Low > 0
		}
		for _, x := range []struct {
			is bool
			n  *int
		}{{miss, &missed}, {missRel, &missedRelative}, {hit, &found}} {
			if x.is {
				*x.n++
			}
		}
	}
	t.Logf("of %d runs: truth missed at some look %d (relative %d), effect found %d", runs, missed, missedRelative, found)
	if bound := binomialBound(q.Alpha); missed > bound || missedRelative > bound {
		t.Errorf("the truth was missed in %d (relative %d) of %d runs, at most %d are compatible with alpha", missed, missedRelative, runs, bound)
	}
	if found < runs*8/10 {
		t.Errorf("a planted +35 %% was found in %d of %d runs only", found, runs)
	}
}

// Users who come back give the sequence more data without moving its clock (units). Measured here, so that
// the controller's use of it is not an assumption: 2,000 users seen over and over stay within alpha.
func TestAAWithReturningUsers(t *testing.T) {
	q := Sequence{Alpha: 0.05, NStar: 5000}
	const users, looks, n = 1000, 40, 200
	wrong := 0
	for run := range n {
		rng := rand.New(rand.NewPCG(13, uint64(run)))
		var rate, m, d [2 * users]float64
		for u := range rate {
			rate[u] = 0.06 * rng.Float64()
		}
		hit := false
		for range looks {
			for range users { // half of the users come by, some of them twice
				u := rng.IntN(2 * users)
				for range 4 {
					d[u]++
					if rng.Float64() < rate[u] {
						m[u]++
					}
				}
			}
			var arms [2]RatioSums
			for u := range rate {
				if d[u] > 0 {
					arms[u%2].Observe(m[u], d[u])
				}
			}
			l, err := Compare(arms[0], arms[1], q)
			if err != nil {
				t.Fatal(err)
			}
			hit = hit || l.P <= q.Alpha
		}
		if hit {
			wrong++
		}
	}
	t.Logf("returning users: %d of %d A/A runs wrong", wrong, n)
	if wrong > 20 { // binomial(200, 0.05) exceeds 20 with probability 0.1 %
		t.Errorf("%d of %d A/A runs wrong with returning users, want at most 20", wrong, n)
	}
}

// A 51/49 split planned as 50/50 is caught, and once caught stays caught by the running minimum.
func TestPlantedSampleRatioMismatchIsCaught(t *testing.T) {
	caught, units := 0, 0
	for run := range 100 {
		rng := rand.New(rand.NewPCG(14, uint64(run)))
		var n [2]int64
		for look := 1; look <= 100; look++ {
			for range 1000 {
				if rng.Float64() < 0.51 {
					n[0]++
				} else {
					n[1]++
				}
			}
			if ln, _ := SampleRatio(n[:], []float64{.5, .5}, 1); PFromLogE(ln) <= 0.01 {
				caught++
				units += look * 1000
				break
			}
		}
	}
	t.Logf("51/49 caught in %d of 100 runs within 100,000 units, after %d on average", caught, units/max(1, caught))
	if caught < 90 {
		t.Errorf("51/49 was caught in %d of 100 runs", caught)
	}
}

// A test of the planned size has found the planned effect with the planned probability at least, at that look or an
// earlier one; and the earlier looks are worth something.
func TestPlannedPowerIsReached(t *testing.T) {
	q := DefaultSequence()
	const effect, sigma, looks = 0.05, 1.0, 40
	n := UnitsToDetect(q, sigma, effect, 0.8)
	atEnd, ever, units := 0, 0, 0.0
	for run := range runs {
		rng := rand.New(rand.NewPCG(15, uint64(run)))
		sum, decided := 0.0, false
		for look := 1; look <= looks; look++ {
			at := n * float64(look) / looks
			sum += effect*n/looks + sigma*math.Sqrt(n/looks)*rng.NormFloat64()
			shown := sum/at > q.HalfWidth(at, sigma/math.Sqrt(at))
			if shown && !decided {
				decided = true
				ever++
				units += at / n
			}
			if look == looks && shown {
				atEnd++
			}
		}
	}
	t.Logf(
		"planned 0.8: shown at the end in %d of %d runs, by then in %d, after %.2f of the units on average",
		atEnd,
		runs,
		ever,
		units/float64(ever),
	)
	misses, bound := runs-atEnd, binomialBound(0.2)
	if below := 2*runs/5 - bound; misses > bound || misses < below || ever < atEnd { // as far below 0.2 runs as bound is above
		t.Errorf("shown at the end in %d of %d runs, planned for 0.8; by then in %d", atEnd, runs, ever)
	}
}
