package ramp

import (
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"ctrloop/internal/stats"
	"ctrloop/schemas/control"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "rewrite testdata/*.golden")

// units builds the sums of n units with 10 impressions each, of which every unit in turn has 0, r or 2r times
// 10 clicks on average: a rate of r with some variance.
func units(n int, r float64) stats.RatioSums {
	var s stats.RatioSums
	rng := rand.New(rand.NewPCG(uint64(n), math.Float64bits(r)))
	owed := 0.0
	for i := range n {
		owed += 10 * r * float64(i%3)
		m := math.Floor(owed)
		owed -= m
		if rng.IntN(2) == 0 && m >= 1 { // some units a click more, others one less
			m, owed = m-1, owed+1
		}
		s.Observe(min(m, 10), 10)
	}
	return s
}

func at(index int, steps ...float64) control.ExperimentStatus {
	x := control.ExperimentStatus{Experiment: control.Experiment{ID: "e", Steps: steps, Alpha: 0.05, NStar: 5000, Created: time.Unix(0, 0)}}
	x.Step = control.Step{Index: index, Share: steps[index]}
	return x
}

// shown adds the lift that made the step.
func shown(x control.ExperimentStatus, low, high float64) control.ExperimentStatus {
	x.Step.Shown = &control.Shown{Low: low, High: high, RelativeLow: low / .04, RelativeHigh: high / .04}
	return x
}

func both(nc int, rc float64, nt int, rt float64) Evidence {
	s := Sums{Control: units(nc, rc), Treatment: units(nt, rt)}
	return Evidence{Now: s, Deciding: s}
}

func paused(x control.ExperimentStatus) control.ExperimentStatus {
	x.Paused = true
	return x
}

// means of n units an arm, of which a share (the mean) has 1 and the others 0.
func means(name string, n int, c, t float64) Metric {
	m := Metric{Name: name}
	for i := range n {
		for _, arm := range []struct {
			s    *stats.RatioSums
			mean float64
		}{{&m.Control, c}, {&m.Treatment, t}} {
			x := 0.0
			if float64(i) < arm.mean*float64(n) {
				x = 1
			}
			arm.s.Observe(x, 1)
		}
	}
	return m
}

// The scenarios are there to be read: testdata/scenarios.golden says what the controller does and why.
func TestScenarios(t *testing.T) {
	ramp5 := []float64{0.01, 0.05, 0.2, 0.5, 1}
	with := func(ev Evidence, f func(*Evidence)) Evidence { f(&ev); return ev }
	var out strings.Builder
	for _, c := range []struct {
		name string
		x    control.ExperimentStatus
		ev   Evidence
		cfg  func(*Config)
	}{
		{"no data yet", at(0, ramp5...), Evidence{}, nil},
		{"first step, treatment too small", at(0, ramp5...), both(4950, .04, 50, .04), nil},
		{"first step, the same few users for ever", at(0, ramp5...), both(4950, .04, 50, .04), func(c *Config) { c.MaxImpressions = 50_000 }},
		{"first step complete", at(0, ramp5...), both(19800, .04, 200, .04), nil},
		{"first step, good lift does not promote", at(1, ramp5...), both(19000, .04, 1000, .08), nil},
		{"harm is caught on a small step", at(1, ramp5...), both(38000, .04, 2000, .015), nil},
		{"treatment without a single click", at(1, ramp5...), both(38000, .04, 2000, 0), nil},
		{"small loss within the margin goes on", at(2, ramp5...), both(16000, .04, 4000, .0395), nil},
		{"deciding step, lift shown, full step follows", at(3, ramp5...), both(10000, .04, 10000, .048), nil},
		{"deciding step, lift shown, ramp ends there", at(1, 0.1, 0.5), both(10000, .04, 10000, .048), nil},
		{"deciding step, undecided", at(3, ramp5...), both(10000, .04, 10000, .0405), nil},
		{"deciding step, out of units", at(3, ramp5...), both(10000, .04, 10000, .0405), func(c *Config) { c.MaxUnits = 20000 }},
		{"deciding step, out of impressions", at(3, ramp5...), both(10000, .04, 10000, .0405), func(c *Config) { c.MaxImpressions = 200000 }},
		{"deciding step, worse but within the margin", at(3, ramp5...), both(60000, .04, 60000, .0378), func(c *Config) { c.Margin = 0.2 }},
		{"sample ratio off", at(3, ramp5...), both(10600, .04, 9400, .06), nil},
		{"sample ratio off comes before a lift", at(3, ramp5...), both(12000, .04, 8000, .08), nil},
		{"generation errors", at(0, ramp5...), with(both(500, .04, 500, .08), func(e *Evidence) { e.Generation = Counts{200, 40} }), nil},
		{"a few generation errors", at(0, ramp5...), with(both(9900, .04, 100, .04), func(e *Evidence) { e.Generation = Counts{200, 12} }), nil},
		{"full step, not enough yet", at(4, ramp5...),
			with(both(0, 0, 50, .05), func(e *Evidence) { e.Deciding = both(10000, .04, 10000, .048).Now }), nil},
		{"full step, the same few users for ever", at(4, ramp5...), with(both(0, 0, 50, .05),
			func(e *Evidence) { e.Deciding = both(10000, .04, 10000, .048).Now }), func(c *Config) { c.MaxImpressions = 500 }},
		{"full step, entered by hand before the deciding step had data", at(4, ramp5...),
			with(both(0, 0, 20000, .05), func(e *Evidence) { e.Deciding = Sums{} }), nil},
		{"full step, entered by hand on a lift of a handful of users", at(4, ramp5...),
			with(both(0, 0, 20000, .05), func(e *Evidence) { e.Deciding = both(90, .01, 90, .3).Now }), nil},
		{"full step, sample ratio off once all is in", at(4, ramp5...),
			with(both(0, 0, 20000, .05), func(e *Evidence) { e.Deciding = both(10600, .04, 9400, .06).Now }), nil},
		{"full step confirms", at(4, ramp5...),
			with(both(0, 0, 20000, .02), func(e *Evidence) { e.Deciding = both(10000, .04, 10000, .048).Now }), nil},
		{"full step, lift gone once all is in", at(4, ramp5...),
			with(both(0, 0, 20000, .05), func(e *Evidence) { e.Deciding = both(10000, .04, 10000, .0405).Now }), nil},
		{"full step, lift shown before, interval wider once all is in", shown(at(4, ramp5...), .0005, .0105),
			with(both(0, 0, 20000, .05), func(e *Evidence) { e.Deciding = both(3000, .04, 3000, .0436).Now }), nil},
		{"full step, complete data contradict the lift that was shown", shown(at(4, ramp5...), .003, .0105),
			with(both(0, 0, 20000, .05), func(e *Evidence) { e.Deciding = both(10000, .04, 10000, .0405).Now }), nil},
		{"full step, generation errors", at(4, ramp5...),
			with(both(0, 0, 20000, .05), func(e *Evidence) { e.Generation = Counts{1000, 200} }), nil},
		{"matching score lost", at(1, ramp5...),
			with(both(19000, .04, 1000, .04), func(e *Evidence) { e.Metrics = []Metric{means(MatchingScore, 5000, 0.6, 0.5)} }), nil},
		{"matching score lower within its margin", at(1, ramp5...),
			with(both(19000, .04, 1000, .04), func(e *Evidence) { e.Metrics = []Metric{means(MatchingScore, 5000, 0.6, 0.58)} }), nil},
		{"descriptions fall apart", at(1, ramp5...),
			with(both(19000, .04, 1000, .04), func(e *Evidence) { e.Metrics = []Metric{means(ValidShare, 400, 0.97, 0.6)} }), nil},
		{"too few descriptions to say", at(1, ramp5...),
			with(both(19000, .04, 1000, .04), func(e *Evidence) { e.Metrics = []Metric{means(ValidShare, 40, 0.97, 0.4)} }), nil},
		{"slower than allowed: the ramp waits", at(3, ramp5...),
			with(both(10000, .04, 10000, .048), func(e *Evidence) { e.Metrics = []Metric{means(GatewaySeconds, 5000, 0.2, 0.5)} }), nil},
		{"a roll-back comes before a wait", at(1, ramp5...), with(both(19000, .04, 1000, .04), func(e *Evidence) {
			e.Metrics = []Metric{means(GatewaySeconds, 5000, 0.2, 0.5), means(MatchingScore, 5000, 0.6, 0.1)}
		}), nil},
		{"paused: no step", paused(at(0, ramp5...)), both(19800, .04, 200, .04), nil},
		{"paused: no promotion", paused(at(1, 0.1, 0.5)), both(10000, .04, 10000, .048), nil},
		{"paused: harm still rolls back", paused(at(1, ramp5...)), both(38000, .04, 2000, .015), nil},
		{"no step with a control", at(0, 1), both(0, 0, 20000, .05), nil},
	} {
		cfg := Default()
		if c.cfg != nil {
			c.cfg(&cfg)
		}
		v := Look(cfg, c.x, c.ev)
		fmt.Fprintf(&out, "%s\n  %s by %s", c.name, v.Action, v.Rule)
		if v.Next != nil {
			fmt.Fprintf(&out, " to step %d at share %g", v.Next.Index, v.Next.Share)
		}
		fmt.Fprintf(&out, "\n  %s\n", v.Why)
		if raw, err := json.Marshal(v); err != nil || !json.Valid(raw) {
			t.Errorf("%s: does not encode: %v", c.name, err)
		}
		if _, err := json.Marshal(v.Decision()); err != nil {
			t.Errorf("%s: decision does not encode: %v", c.name, err)
		}
	}
	const file = "testdata/scenarios.golden"
	if *update {
		if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), out.String()); d != "" {
		t.Errorf("scenarios (-want +got; -update rewrites):\n%s", d)
	}
}

// Whatever the sums, a look gives an action with a reason, only the deciding step or a confirmed full step
// promotes, and a step goes up by one.
func TestLookIsSane(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		steps := []float64{0.05, 0.5, 1}
		i := rapid.IntRange(0, 2).Draw(t, "step")
		draw := func(name string) Evidence {
			return both(rapid.IntRange(0, 3000).Draw(t, name+"nc"), rapid.Float64Range(0, 0.3).Draw(t, name+"rc"),
				rapid.IntRange(0, 3000).Draw(t, name+"nt"), rapid.Float64Range(0, 0.3).Draw(t, name+"rt"))
		}
		ev := draw("now")
		ev.Deciding = draw("deciding").Now
		ev.Generation.Total = rapid.Int64Range(0, 500).Draw(t, "total")
		ev.Generation.Failed = rapid.Int64Range(0, ev.Generation.Total).Draw(t, "failed")
		x := at(i, steps...)
		v := Look(Default(), x, ev)
		if v.Why == "" || v.Rule == "" {
			t.Fatalf("no reason: %+v", v)
		}
		switch v.Action {
		case Promote:
			if i != 2 || v.Figures.LiftLow <= 0 || v.Figures.Step.Share >= 1 {
				t.Fatalf("promoted at step %d on %+v", i, v.Figures)
			}
		case Step:
			if v.Next == nil || v.Next.Index != i+1 || v.Next.Share != steps[i+1] {
				t.Fatalf("stepped to %+v", v.Next)
			}
		case Hold, RollBack, Inconclusive:
		default:
			t.Fatalf("unknown action %q", v.Action)
		}
		if v.Figures.Generation.Total == 0 && v.Rule == GenerationErrors {
			t.Fatal("generation errors without generations")
		}
	})
}

// A6: a sample ratio that nothing was tested for is not known, which is not "as planned". It stops no step, and promotes none.
func TestASampleRatioThatIsNotKnownSaysSo(t *testing.T) {
	x, full := at(1, 0.1, 0.5, 1), at(2, 0.1, 0.5, 1)
	for name, c := range map[string]struct {
		f   Figures
		why string
	}{
		"no units":      {Describe(Default(), x, x.Step, Evidence{}), "no units"},
		"no control":    {Describe(Default(), full, full.Step, both(100, 0.04, 100, 0.04)), "share 1"},
		"nothing known": {NoFigures(x.Step, "no warehouse"), "no warehouse"},
	} {
		if !math.IsNaN(float64(c.f.SRMP)) || !strings.Contains(c.f.Missing["srm_p"], c.why) {
			t.Errorf("%s: p %g because %q, want that it is not known because of %q", name, c.f.SRMP, c.f.Missing["srm_p"], c.why)
		}
		raw, err := json.Marshal(Verdict{Figures: c.f}.Decision())
		if err != nil || strings.Contains(string(raw), "srm_p") {
			t.Errorf("%s: the log would say %s, %v", name, raw, err)
		}
	}
	if f := Describe(Default(), x, x.Step, both(100, 0.04, 90, 0.04)); !(f.SRMP > 0.01) || f.Missing["srm_p"] != "" {
		t.Errorf("p %g of 100 and 90 units, %q", f.SRMP, f.Missing["srm_p"])
	}
	if v := Look(Default(), x, Evidence{}); v.Action != Hold || v.Rule != MinSamples {
		t.Errorf("before the first unit: %s by %s, want to wait", v.Action, v.Rule)
	}
	// More units than can be tested: what cannot be read holds the ramp.
	s := stats.RatioSums{N: 2e12, M: 1e11, D: 2e12, MM: 1e11, DD: 2e12, MD: 1e11}
	if v := Look(Default(), at(0, 0.1, 0.5, 1), Evidence{Now: Sums{Control: s, Treatment: s}}); v.Action != Hold || v.Rule != UnreadFigures ||
		!strings.Contains(v.Why, "sample ratio") {
		t.Errorf("of 4e12 units: %s by %s: %s, want to wait", v.Action, v.Rule, v.Why)
	}
}

func TestValidateNamesEveryProblem(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Fatal(err)
	}
	err := Config{Guardrails: []Guardrail{{}}}.Validate()
	for _, path := range []string{"min_units", "min_impressions", "min_clicks", "guard_alpha", "srm_alpha", "srm_prior", "error_limit",
		"error_alpha", "guardrails[0].metric", "guardrails[0].better", "guardrails[0].alpha", "guardrails[0].min_units", "guardrails[0].action"} {
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s is missing in: %v", path, err)
		}
	}
}

// A/A on a guardrail's metric with a look after every batch: it fires within its alpha; and it finds what is beyond
// the margin, in either direction of better.
func TestGuardrailsHoldTheirError(t *testing.T) {
	run := func(seed uint64, rail Guardrail, treatment float64) (fired bool) {
		rng := rand.New(rand.NewPCG(seed, 77))
		var m Metric
		m.Name = rail.Metric
		for range 100 {
			for range 50 {
				m.Control.Observe(rng.ExpFloat64(), 1)
				m.Treatment.Observe(treatment*rng.ExpFloat64(), 1)
			}
			g := guards([]Guardrail{rail}, []Metric{m}, 5000)[0]
			fired = fired || g.State == GuardFailed
		}
		return fired
	}
	for _, c := range []struct {
		better      Direction
		null, worse float64
	}{{LowerIsBetter, 1.2, 1.5}, {HigherIsBetter, 0.8, 0.6}} {
		rail := Guardrail{Metric: "m", Better: c.better, Margin: 0.2, Alpha: 0.05, MinUnits: 500, Action: RollBack}
		wrong, found := 0, 0
		for seed := range uint64(200) {
			if run(seed, rail, c.null) { // exactly at the margin: the hardest null
				wrong++
			}
			if run(seed, rail, c.worse) {
				found++
			}
		}
		// binomial(200, 0.05) exceeds 21 with probability 0.1 %
		if wrong > 21 || found < 190 {
			t.Errorf("%s is better: fired %d of 200 times at the margin, %d beyond it", c.better, wrong, found)
		}
	}
}

// At a share of 1 %, in metrics with a long tail and at the hardest null, neither answer of a guardrail is wrong more
// often than its alpha. The bound that trusts the small arm's own variance is: this is why guardrails do not use it.
func TestGuardrailsHoldTheirErrorAtASmallShare(t *testing.T) {
	const runs, looks, perLook = 400, 30, 50 // treatment units a look; the control gets 99 times as many
	tail := func(rng *rand.Rand) float64 { return math.Exp(1.2 * rng.NormFloat64()) }
	rare := func(rng *rand.Rand) float64 { // most units have nothing, as with purchases
		if rng.IntN(20) > 0 {
			return 0
		}
		return rng.ExpFloat64()
	}
	for _, c := range []struct {
		name   string
		better Direction
		margin float64
		draw   func(*rand.Rand) float64
	}{{"seconds", LowerIsBetter, 0.25, tail}, {"purchases", HigherIsBetter, 0.1, rare}} {
		rail := Guardrail{Metric: "m", Better: c.better, Margin: c.margin, Alpha: 0.05, MinUnits: 100, Action: RollBack}
		factor := 1 - c.margin
		if c.better == LowerIsBetter {
			factor = 1 + c.margin
		}
		failed, passed, plain := 0, 0, 0
		pool := rand.New(rand.NewPCG(5, 5))
		var blocks [200]stats.RatioSums // of control units, drawn from with replacement: 99 to 1 would take minutes
		for i := range blocks {
			for range 99 * perLook {
				blocks[i].Observe(c.draw(pool), 1)
			}
		}
		for seed := range uint64(runs) {
			rng := rand.New(rand.NewPCG(seed, 78))
			m := Metric{Name: "m"}
			var f, p, trusting bool
			for range looks {
				m.Control = m.Control.Add(blocks[rng.IntN(len(blocks))])
				for range perLook {
					m.Treatment.Observe(factor*c.draw(rng), 1)
				}
				g := guards([]Guardrail{rail}, []Metric{m}, 5000)[0]
				f, p = f || g.State == GuardFailed, p || g.State == GuardPassed
				own := stats.Inferiority(m.Control, m.Treatment, 1-factor, stats.Sequence{Alpha: rail.Alpha, NStar: 5000})
				trusting = trusting || m.Treatment.N >= rail.MinUnits && (own.High < 0 || own.Low > 0)
			}
			for _, x := range []struct {
				hit bool
				n   *int
			}{{f, &failed}, {p, &passed}, {trusting, &plain}} {
				if x.hit {
					*x.n++
				}
			}
		}
		t.Logf("%s: failed %d, passed %d of %d; with the arm's own variance wrong in %d", c.name, failed, passed, runs, plain)
		// binomial(400, 0.05) exceeds 34 with probability 0.1 %
		if failed > 34 || passed > 34 {
			t.Errorf("%s: of %d runs at the margin %d failed and %d passed", c.name, runs, failed, passed)
		}
		if plain <= 34 {
			t.Errorf("%s: the arm's own variance misleads in %d of %d runs only: this metric tests nothing", c.name, plain, runs)
		}
	}
}
