package decide

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"gonum.org/v1/gonum/stat/distuv"

	"ctrloop/internal/stats"
	"ctrloop/internal/stats/statcsv"
)

// The frequencies of thirty thousand users are the propensities, whatever the mix of exploration, arms and draws.
func TestPropensityIsTheFrequency(t *testing.T) {
	for _, c := range []struct{ epsilon, share float64 }{{0, 0.5}, {0.2, 0.5}, {0.05, 0.1}, {0.5, 0.9}, {0.1, 1}} {
		s := newService(t, c.epsilon, assigner(t, true, c.share))
		for _, product := range []string{"p1", "p2"} { // the second has no creative of the treatment
			const n = 30_000
			seen, want := map[string]int{}, map[string]float64{}
			for _, d := range s.Decide(requests(n, product), nil) {
				seen[d.Creative]++
				if p, ok := want[d.Creative]; ok && math.Abs(p-d.Propensity) > 1e-15 {
					t.Fatalf("%s has the propensities %g and %g", d.Creative, p, d.Propensity)
				}
				want[d.Creative] = d.Propensity
			}
			sum := 0.0
			for creative, p := range want {
				sum += p
				// The arms are hashed: five standard errors, and half a bucket of the shares' resolution.
				if b := (distuv.Binomial{N: n, P: p}); float64(seen[creative]) < n*p-5*b.StdDev()-5 || float64(seen[creative]) > n*p+5*b.StdDev()+5 {
					t.Errorf("epsilon %g, share %g: %s in %d of %d decisions, its propensity is %g", c.epsilon, c.share, creative, seen[creative], n, p)
				}
			}
			if sum < 1-1e-12 || sum > 1+1e-12 {
				t.Errorf("epsilon %g, share %g, %s: propensities add up to %g", c.epsilon, c.share, product, sum)
			}
		}
	}
}

// Two hundred logs that the handler itself has written, each evaluated as `stats ope --experiment` does, for what the
// treatment's arm did: every estimator's interval holds the truth in at least 93 % of them.
func TestEstimatesFromOwnLogsHoldTheTruth(t *testing.T) {
	const logs, decisions = 200, 2500
	policy := "product,creative,probability\n"
	truth := map[string]float64{} // click-through rate of each creative of p1
	for i := range 4 {
		truth[fmt.Sprintf("c-p1-v-control-%d", i)] = 0.04 + 0.02*float64(i)
	}
	want := 0.0
	for i := range 2 {
		id := fmt.Sprintf("c-p1-v-treatment-%d", i)
		truth[id] = 0.11 + 0.08*float64(i)
		policy += fmt.Sprintf("p1,%s,0.5\n", id)
		want += truth[id] / 2
	}
	held := map[stats.Estimator]int{}
	for run := range logs {
		rng := rand.New(rand.NewPCG(12, uint64(run)))
		cfg := Default()
		cfg.Epsilon, cfg.Seed = 0.1, uint64(run+1)
		s := newService(t, 0, assigner(t, true, 0.3))
		s.cfg = cfg
		names := statcsv.NewNames()
		p, err := names.ReadPolicy(strings.NewReader(policy))
		if err != nil {
			t.Fatal(err)
		}
		var body strings.Builder
		body.WriteString(`{"requests":[`)
		for i := range decisions {
			if i > 0 {
				body.WriteByte(',')
			}
			fmt.Fprintf(&body, `{"user":"u%d-%d","product":"p1"}`, run, i)
		}
		body.WriteString("]}")
		var got struct{ Decisions []Decision }
		if w := call(s, body.String()); w.Code != 200 || json.Unmarshal(w.Body.Bytes(), &got) != nil || len(got.Decisions) != decisions {
			t.Fatalf("%d %.200s", w.Code, w.Body)
		}
		log := &statcsv.Log{}
		for _, d := range got.Decisions {
			if d.Experiment != "e" && d.Policy != ExploredFrom("e") {
				continue
			}
			if err := names.Add(log, d.Product, d.Creative, rng.Float64() < truth[d.Creative], d.Propensity); err != nil {
				t.Fatal(err)
			}
		}
		samples, err := log.Samples(p, log.Prior())
		if err != nil {
			t.Fatal(err)
		}
		e, err := stats.EvaluatePolicy(samples, stats.DefaultOPEParams())
		if err != nil {
			t.Fatal(err)
		}
		if w := e.Warnings(); len(w) > 0 {
			t.Errorf("run %d: %v", run, w)
		}
		for name, v := range e.Estimates {
			if v.Low <= want && want <= v.High {
				held[name]++
			}
		}
	}
	if len(held) != 9 {
		t.Errorf("%d estimators", len(held))
	}
	for _, name := range stats.Estimators() {
		t.Logf("%-12s holds the truth in %d of %d logs", name, held[name], logs)
		if held[name] < logs*93/100 {
			t.Errorf("%s holds the truth in %d of %d logs, want at least 93 %%", name, held[name], logs)
		}
	}
}
