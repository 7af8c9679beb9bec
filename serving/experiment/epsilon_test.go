package experiment

import (
	"fmt"
	"math"
	"testing"

	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving/creatives"
	"ctrloop/serving/decide"
	"ctrloop/serving/experiment/assign"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// A rollout never ends exploration: after the promotion, by the controller itself, the epsilon share still goes
// uniformly over the creatives of all versions, labelled and in no experiment, while the rest goes to the new champion.
// Forced requests are never an exploration.
func TestEpsilonTrafficOutlivesAPromotion(t *testing.T) {
	r := newRig(t, 1, 0.2, 0.5, 1)
	if x := r.run(t, 200, flat(0.04, 0.06)); x.Running() || x.Decision.Outcome != control.Promote {
		t.Fatalf("ended as %+v", x.Decision)
	}
	lib := creatives.NewLibrary()
	for _, c := range []string{"a1", "a2", "a3", "b1"} {
		lib.Put(schemas.Creative{ID: c, Product: "p", ModelVersion: "prompt-" + c[:1], Valid: true})
	}
	cfg := decide.Default()
	cfg.Seed = 5
	d, err := decide.New(cfg, lib, assign.New(r.log.st), zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	const n = 200_000
	reqs := make([]decide.Request, n)
	for i := range reqs {
		reqs[i] = decide.Request{User: decide.User(fmt.Sprint(i % 6000)), Product: "p", TimeMS: 1}
	}
	explored := map[string]int{}
	total := 0
	for _, got := range d.Decide(reqs, nil) {
		switch got.Variant {
		case decide.VariantExplore:
			if total++; got.Policy != decide.PolicyExplore || got.Experiment != "" || got.ArmShare != 1 {
				t.Fatalf("exploration %+v", got)
			}
			// One of four by exploration; else the champion's only one.
			want := cfg.Epsilon / 4
			if got.ModelVersion == "prompt-b" {
				want += 1 - cfg.Epsilon
			}
			if math.Abs(got.Propensity-want) > 1e-15 {
				t.Fatalf("exploration %+v, want the propensity %g", got, want)
			}
			explored[got.Creative]++
		default:
			if got.ModelVersion != "prompt-b" || got.Experiment != "" || got.Variant != "" {
				t.Fatalf("after the promotion: %+v", got)
			}
		}
	}
	if share := float64(total) / n; math.Abs(share-cfg.Epsilon) > 5*math.Sqrt(cfg.Epsilon/n) {
		t.Errorf("explored %.4f of the traffic, want %g", share, cfg.Epsilon)
	}
	for c, k := range explored {
		if z := (float64(k) - float64(total)/4) / math.Sqrt(float64(total)*3/16); math.Abs(z) > 5 {
			t.Errorf("%s in %d of %d explorations: not uniform", c, k, total)
		}
	}
	if len(explored) != 4 {
		t.Errorf("explored %v", explored)
	}
	for i := range reqs {
		reqs[i].Force = "e:control"
	}
	for _, got := range d.Decide(reqs[:5000], nil) {
		if got.Variant == decide.VariantExplore {
			t.Fatal("a forced request explored")
		}
	}
}
