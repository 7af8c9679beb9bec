package simulate

import (
	"context"
	"encoding/json"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"ctrloop/internal/stats"
	"ctrloop/serving/experiment/ramp"

	"github.com/google/go-cmp/cmp"
	"gonum.org/v1/gonum/stat/distuv"
)

func newLab(runs int) *lab {
	return &lab{ctx: context.Background(), o: Options{Runs: runs, Seed: 5, Workers: 2}, progress: func(int, int) {}}
}

// unlikely is a count that a binomial(runs, p) exceeds with probability below one in a million.
func unlikely(runs int, p float64) int {
	b := distuv.Binomial{N: float64(runs), P: p}
	k := 0
	for b.CDF(float64(k)) < 1-1e-6 {
		k++
	}
	return k
}

// The alias table gives every pair of clicks and impressions the probability of the model, to rounding.
func TestCrowdIsDrawnExactly(t *testing.T) {
	w := World{CTR: 0.05, Concentration: 6, Tail: 2.5, Shift: 3, MaxImpressions: 40, Slope: 0.2}
	c := newCrowd(w, 1.2)
	got := map[pair]float64{}
	for _, x := range c.cells {
		cut := float64(x.cut) / (1 << 63) / 2
		got[x.own] += cut / float64(len(c.cells))
		got[x.other] += (1 - cut) / float64(len(c.cells))
	}
	var users, impressions, clicks, e2 float64
	for p, x := range got {
		users += x
		impressions += x * float64(p.d)
		clicks += x * float64(p.m)
		e := float64(p.m) - 1.2*w.CTR*float64(p.d)
		e2 += x * e * e
	}
	for what, v := range map[string][2]float64{
		"probability": {users, 1}, "impressions": {impressions, c.dbar}, "clicks": {clicks, 1.2 * w.CTR * c.dbar},
		"square of residuals": {e2, c.e2},
		// One impression is one Bernoulli draw, whatever the concentration: P(1 click | 1) is the rate of those users.
		"users with one impression": {got[pair{0, 1}] + got[pair{1, 1}], 1 / math.Pow(4, 2.5) / tailSum(w)},
	} {
		if math.Abs(v[0]-v[1]) > 1e-9 {
			t.Errorf("%s: %v, want %v", what, v[0], v[1])
		}
	}
	rng := rand.New(rand.NewPCG(1, 1))
	var s stats.RatioSums
	for range 200_000 {
		s.Observe(c.draw(rng))
	}
	if z := (s.Rate() - 1.2*w.CTR) / math.Sqrt(c.e2/(c.dbar*c.dbar*float64(s.N))); math.Abs(z) > 4 {
		t.Errorf("drawn rate %g is %.1f standard errors from %g", s.Rate(), z, 1.2*w.CTR)
	}
	if r := s.RateVariance() * float64(s.N) * c.dbar * c.dbar / c.e2; math.Abs(r-1) > 0.05 {
		t.Errorf("drawn variance is %.3f times the model's", r)
	}
}

func tailSum(w World) (sum float64) {
	for d := 1; d <= w.MaxImpressions; d++ {
		sum += math.Pow(float64(d)+w.Shift, -w.Tail)
	}
	return sum
}

// Mean and variance of the beta-binomial have closed forms.
func TestBetaBinomial(t *testing.T) {
	const d, a, b = 12, 0.7, 9.3
	var sum, mean, square float64
	for m, p := range betaBinomial(d, a, b) {
		sum += p
		mean += p * float64(m)
		square += p * float64(m) * float64(m)
	}
	p, rho := a/(a+b), 1/(a+b+1)
	for what, v := range map[string][2]float64{
		"sum": {sum, 1}, "mean": {mean, d * p}, "variance": {square - mean*mean, d * p * (1 - p) * (1 + (d-1)*rho)},
	} {
		if math.Abs(v[0]-v[1]) > 1e-12 {
			t.Errorf("%s %v, want %v", what, v[0], v[1])
		}
	}
}

// Values of R's binom.test.
func TestClopperPearson(t *testing.T) {
	for _, c := range []struct {
		x, n      int
		low, high float64
	}{{0, 100, 0, 0.03621669}, {5, 100, 0.01643187, 0.11283491}, {100, 100, 0.96378331, 1}, {0, 0, 0, 1}} {
		low, high := ClopperPearson(c.x, c.n, 0.05)
		if math.Abs(low-c.low) > 1e-7 || math.Abs(high-c.high) > 1e-7 {
			t.Errorf("%d of %d: %.8f to %.8f, want %.8f to %.8f", c.x, c.n, low, high, c.low, c.high)
		}
	}
}

// The same seed gives the same tables, however many workers share the runs; another seed gives others.
func TestWorkersDoNotMatter(t *testing.T) {
	tables := func(seed uint64, workers int) string {
		var last float64
		got, err := Run(
			context.Background(),
			Options{Runs: 3, Seed: seed, Workers: workers, Only: []string{"aa", "bots"}, Progress: func(share float64, _ string) {
				if share < last-1e-9 || share > 1 {
					t.Errorf("progress goes from %g to %g", last, share)
				}
				last = share
			}},
		)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	one := tables(3, 1)
	if d := cmp.Diff(one, tables(3, 3)); d != "" {
		t.Errorf("1 and 3 workers differ:\n%s", d)
	}
	if one == tables(4, 3) {
		t.Error("another seed changes nothing")
	}
}

func TestCancelledRunEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Run(ctx, Options{Runs: 1000, Seed: 1, Workers: 2}); err == nil {
		t.Error("no error")
	}
}

// The sums that are kept up to date visit by visit are those of all visits.
func TestLedgerKeepsSums(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 6))
	var sums tally
	newRegulars(newNames(20), []float64{0.1}, &sums, rng)
	type of struct{ arm, user int }
	total, step, weighted := map[of]pair{}, map[of]pair{}, map[of][2]float64{}
	share := 0.25
	for i := range 500 {
		if i == 300 {
			sums.next(share)
			clear(step)
			share = 0.5
		}
		k := of{rng.IntN(2), rng.IntN(20)}
		m, d := uint16(rng.IntN(3)), uint16(2)
		sums.visit(k.arm, k.user, float64(m), float64(d), share)
		w := share
		if k.arm == armTreatment {
			w = 1 - share
		}
		for _, x := range []map[of]pair{total, step} {
			x[k] = pair{x[k].m + m, x[k].d + d}
		}
		weighted[k] = [2]float64{weighted[k][0] + w*float64(m), weighted[k][1] + w*float64(d)}
	}
	var want [3]both
	for i, x := range []map[of]pair{total, step} {
		for k, p := range x {
			want[i][k.arm].Observe(float64(p.m), float64(p.d))
		}
	}
	for k, p := range weighted {
		want[2][k.arm].Observe(p[0], p[1])
	}
	for i, got := range []both{sums.total, sums.step, sums.weighted} {
		for arm := range arms {
			if g, w := got[arm], want[i][arm]; g.N != w.N || math.Abs(g.M-w.M) > 1e-9 || math.Abs(g.MM-w.MM) > 1e-6 || math.Abs(g.DD-w.DD) > 1e-6 ||
				math.Abs(g.MD-w.MD) > 1e-6 {
				t.Errorf("sums %d, arm %d: %+v, want %+v", i, arm, g, w)
			}
		}
	}
}

// An A/A test that is looked at after every batch: the sequence keeps its promise and the usual tests break it, or
// this test would not be able to fail.
func TestAAInShort(t *testing.T) {
	const runs = 200
	for _, w := range []struct {
		name  string
		world World
	}{{"ordinary", Ordinary()}, {"strong", Strong()}} {
		s, err := trial{
			name:            "test " + w.name,
			world:           w.world,
			looks:           40,
			perLook:         150,
			lift:            constant(0),
			withSampleRatio: true,
		}.run(
			newLab(runs),
		)
		if err != nil {
			t.Fatal(err)
		}
		found, missed, delta, naive, ratio := count(s, isFound), count(s, isMissed), count(s, isDelta), count(s, isNaive), count(s, isRatio)
		t.Logf("%s: sequence %d, missed %d, delta %d, per impression %d, ratio %d of %d", w.name, found, missed, delta, naive, ratio, runs)
		if bound := unlikely(runs, 0.05); found > bound || missed > bound || ratio > bound {
			t.Errorf("%s: sequence %d, missed %d, ratio %d of %d: more than %d do not happen at 5 %%", w.name, found, missed, ratio, runs, bound)
		}
		if bound := unlikely(runs, 0.05); delta <= bound || naive <= bound {
			t.Errorf("%s: delta %d, per impression %d of %d: want more than %d, the world is too easy", w.name, delta, naive, runs, bound)
		}
	}
}

func TestPlantedLiftInShort(t *testing.T) {
	const runs, lift = 100, 0.25
	s, err := trial{name: "test lift", world: Ordinary(), looks: 20, perLook: 500, lift: constant(lift)}.run(newLab(runs))
	if err != nil {
		t.Fatal(err)
	}
	if found := count(s, isFoundUp); found < 95 {
		t.Errorf("found in %d of %d runs", found, runs)
	}
	if missed := count(s, isMissed); missed > unlikely(runs, 0.05) {
		t.Errorf("the truth was left out in %d of %d runs", missed, runs)
	}
	if m := float64(mean("", Relative, pick(s, estimateAtEnd)).Value); math.Abs(m-lift) > 0.02 {
		t.Errorf("mean estimate %g, want %g", m, lift)
	}
}

// A ramp while the rate drifts: pooled sums find what is not there, in nearly all runs; one step and overlap weights
// do not.
func TestSimpsonInShort(t *testing.T) {
	const runs = 100
	for _, returning := range []int{0, 2000} {
		s, err := drifting{"test simpson", Ordinary(), 0, []float64{0.1, 0.5}, []int{8, 12}, 600, returning}.run(newLab(runs))
		if err != nil {
			t.Fatal(err)
		}
		missed := func(i int) int {
			return count(s, func(e [estimators]estimated) bool { return e[i].missed })
		}
		t.Logf(
			"returning %d: pooled %d, one step %d, by stratum %d, by user %d",
			returning,
			missed(pooled),
			missed(oneStep),
			missed(byStratum),
			missed(byUser),
		)
		// Of users who come back there are few: the smaller arm's borrowed spread hides a part of it.
		if least := map[int]int{0: runs / 2, 2000: runs / 4}[returning]; missed(pooled) < least {
			t.Errorf("pooled sums missed the truth in %d of %d runs: the trap is too shallow", missed(pooled), runs)
		}
		if bound := unlikely(runs, 0.05); missed(oneStep) > bound || missed(byUser) > bound {
			t.Errorf(
				"one step missed the truth in %d, overlap weights in %d of %d runs, at most %d are compatible with alpha",
				missed(oneStep),
				missed(byUser),
				runs,
				bound,
			)
		}
	}
}

func TestRolloutInShort(t *testing.T) {
	const runs = 40
	cfg := ramp.Default()
	cfg.MaxUnits = 8000
	ends := func(lift float64) (promoted, back int) {
		s, err := rollout{"test rollout", Ordinary(), []float64{0.05, 0.5, 1}, lift, 1000, cfg, 0}.run(newLab(runs))
		if err != nil {
			t.Fatal(err)
		}
		return count(s, func(e ended) bool { return e.action == ramp.Promote }), count(s, func(e ended) bool { return e.action == ramp.RollBack })
	}
	if promoted, back := ends(0); promoted > unlikely(runs, 0.05) || back > unlikely(runs, 0.1) {
		t.Errorf("without an effect %d promoted, %d rolled back", promoted, back)
	}
	if promoted, _ := ends(0.4); promoted < 36 {
		t.Errorf("+40 %%: %d promoted", promoted)
	}
	if promoted, back := ends(-0.4); promoted > 0 || back < 36 {
		t.Errorf("-40 %%: %d promoted, %d rolled back", promoted, back)
	}
}

// The probability of an alarm at one look, against the sum over all counts.
func TestAlarmProbability(t *testing.T) {
	const n, planned, actual, alpha = 400, 0.5, 0.42, 0.05
	b := distuv.Binomial{N: n, P: actual}
	want := 0.0
	for k := range n + 1 {
		if ratioP([arms]int64{int64(n - k), int64(k)}, planned) <= alpha {
			want += b.Prob(float64(k))
		}
	}
	if got := alarmProbability(n, planned, actual, alpha); math.Abs(got-want) > 1e-9 || want < 0.3 {
		t.Errorf("%v, want %v", got, want)
	}
	at := alarmBy(0.9, 0.5, 0.45, 0.01)
	if alarmProbability(at, 0.5, 0.45, 0.01) < 0.9 || alarmProbability(at-1000, 0.5, 0.45, 0.01) >= 0.9 {
		t.Errorf("90 %% by %d users", at)
	}
}

func TestBrokenClaimsAreNamed(t *testing.T) {
	tables := []Table{{Name: "t", Rows: []Row{{"row", []Cell{
		share("too many", 100, 1000).that(AtMost, 0.05),
		share("fine", 40, 1000).that(AtMost, 0.05),
		share("too few", 900, 1000).that(AtLeast, 0.95),
		share("does not fail", 3, 1000).that(Exceeds, 0.05),
		share("fails", 300, 1000).that(Exceeds, 0.05),
		value("none", Number, math.NaN()),
	}}}}}
	broken := Broken(tables)
	if len(broken) != 3 || !strings.Contains(broken[0], "too many") || !strings.Contains(broken[1], "too few") ||
		!strings.Contains(broken[2], "does not fail") {
		t.Errorf("broken: %q", broken)
	}
	var b strings.Builder
	if err := Print(&b, tables); err != nil || strings.Count(b.String(), "BROKEN") != 3 ||
		!strings.Contains(b.String(), "10.0 % (8.2-12.0) <= 5 BROKEN") {
		t.Errorf("%v:\n%s", err, b.String())
	}
	if raw, err := json.Marshal(tables); err != nil || strings.Contains(string(raw), "NaN") {
		t.Errorf("%s, %v", raw, err)
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{Runs: 0, Workers: 1}, {Runs: 1, Workers: 0}, {Runs: 1, Workers: 1, Only: []string{"nothing"}}} {
		if _, err := Run(context.Background(), o); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}

// The guardrail on matching scores is quiet where the loss is its margin, and finds half of the score gone among the
// first users that it may look at.
func TestMatchingGuardInShort(t *testing.T) {
	const runs = 100
	fired := func(loss float64) (n int, treated float64) {
		s, err := matchingTrial{"test matching", Strong(), 0.05, loss, 1000}.treated(newLab(runs))
		if err != nil {
			t.Fatal(err)
		}
		n = count(s, func(n float64) bool { return n > 0 })
		slices.Sort(s)
		return n, s[runs/2]
	}
	if n, _ := fired(0.1); n > unlikely(runs, 0.01) {
		t.Errorf("at the margin it fires in %d of %d runs", n, runs)
	}
	if n, treated := fired(0.5); n < runs || treated > 250 {
		t.Errorf("a loss of one half: %d of %d, with %g users of the treatment", n, runs, treated)
	}
}
