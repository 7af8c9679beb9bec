package console

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"testing"
	"time"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging"
	"ctrloop/internal/stats"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/ramp"
)

// wall is when the sample was taken; its stream is in another month, as a demo's is.
var (
	wall   = time.Date(2026, 11, 23, 15, 4, 5, 0, time.UTC)
	stream = time.Date(2026, 3, 2, 18, 40, 0, 0, time.UTC)
)

// sampleRollout is what the real controller says about 9,412 users in the deciding step.
func sampleRollout() Rollout {
	rng := rand.New(rand.NewPCG(5, 5))
	arm := func(users int, rate float64) (s stats.RatioSums) {
		for range users {
			d := 1 + rng.IntN(9)
			m := 0
			for range d {
				if rng.Float64() < rate {
					m++
				}
			}
			s.Observe(float64(m), float64(d))
		}
		return s
	}
	x := control.ExperimentStatus{
		Experiment: control.Experiment{ID: "exp-prompt-71d0c3b9a44e", Logical: "prompt", Unit: "user", Control: "prompt-2f9be81c07d5",
			Treatment: "prompt-71d0c3b9a44e", Steps: []float64{0.01, 0.05, 0.2, 0.5, 1}, Alpha: 0.05, NStar: 5000},
		Step:    control.Step{Index: 3, Share: 0.5},
		Stepped: wall.Add(-7 * time.Minute),
	}
	sums := ramp.Sums{Control: arm(4731, 0.0361), Treatment: arm(4681, 0.0405)}
	return NewRollout(
		x,
		ramp.Look(ramp.Default(), x, ramp.Evidence{Now: sums, Deciding: sums, Generation: ramp.Counts{Total: 1408, Failed: 3}}),
		0.05,
	)
}

// sample is a loop in the middle of its second rollout.
func sample(t testing.TB, cat *catalogue.Catalogue) Overview {
	t.Helper()
	r := sampleRollout()
	o := Overview{
		Time: wall, EventTime: &stream,
		Instance: Instance{Name: "./data", Version: "v0.1.0", Mode: "embedded", UptimeSeconds: 1294},
		Stages: []Stage{
			{
				Name:       Ingest,
				State:      Running,
				Rate:       new(1284.3),
				RateOf:     "impressions",
				Total:      1_214_880,
				LagSeconds: new(0.04),
				LagOf:      "received to log",
				Detail:     "12,143 duplicates recognised",
				AgeSeconds: 1,
			},
			{
				Name:       Join,
				State:      Running,
				Rate:       new(1271.8),
				RateOf:     "labels",
				Total:      1_158_302,
				LagSeconds: new(0.8),
				LagOf:      "log to join",
				Dropped:    5784,
				Detail:     "window 2 h, 44,435 impressions open",
				AgeSeconds: 1,
			},
			{
				Name:       Pair,
				State:      Running,
				Rate:       new(3.1),
				RateOf:     "pairs",
				Total:      8412,
				LagSeconds: new(14.0),
				LagOf:      "labels to pairs",
				Detail:     "312 of 2,000 new pairs until the next data set",
				AgeSeconds: 2,
			},
			{
				Name:       Train,
				State:      Idle,
				Rate:       new(0.0),
				RateOf:     "steps",
				Total:      2940,
				Detail:     "last: rounds, 4 min 12 s, all gates passed",
				AgeSeconds: 1,
			},
			{
				Name:       Serve,
				State:      Degraded,
				Rate:       new(1284.0),
				RateOf:     "decisions",
				Total:      1_214_902,
				LagSeconds: new(0.0006),
				LagOf:      "p99 of a decision",
				Dropped:    2,
				Detail:     "1 of 2 model servers restarts",
				AgeSeconds: 1,
			},
		},
		Freshness: Freshness{NewestClick: new(stream.Add(-14 * time.Minute)), AgeSeconds: new(840.0)},
		Champion: &Champion{
			Version:     "prompt-2f9be81c07d5",
			Since:       wall.Add(-16 * time.Minute),
			Previous:    "prompt-base",
			Note:        "lift +0.41 points [+0.12, +0.70]",
			Pairs:       4127,
			Impressions: 402_118,
			Clicks:      14_533,
		},
		Rollout: &r,
		Ledger:  Ledger{Received: 1_214_880, Positive: 42_118, Negative: 1_110_400, Open: 44_435, Duplicate: 12_143, Late: 5784},
		Marks: []Mark{{stream.Add(-9 * time.Hour), "promoted", "2f9be81c promoted"}, {stream.Add(-3 * time.Hour), "step", "71d0c3b9 at 1 %"},
			{
				stream.Add(-150 * time.Minute),
				"step",
				"5 %",
			}, {stream.Add(-2 * time.Hour), "step", "20 %"}, {stream.Add(-70 * time.Minute), "step", "50 %"}},
		Alerts: []Alert{{"warn", "Model server embedded-1 is not answering", wall.Add(-40 * time.Second), ""}},
	}
	rng := rand.New(rand.NewPCG(3, 3))
	for i := range 96 {
		at := stream.Add(time.Duration(i-96) * 15 * time.Minute)
		rate := 0.033 + 0.003*math.Sin(float64(i)/14)
		if i >= 60 {
			rate += 0.004
		}
		n := 9000 + rng.IntN(4000)
		o.CTR = append(
			o.CTR,
			CTRPoint{Time: at, Impressions: int64(n), Clicks: int64(float64(n)*rate + rng.NormFloat64()*math.Sqrt(float64(n)*rate))},
		)
	}
	for i, e := range []struct{ typ, entity, actor, note string }{
		{"experiment.step", "experiment/exp-prompt-71d0c3b9a44e", "experiment-controller", "enough data at share 0.2 and no guard fired"},
		{"experiment.step", "experiment/exp-prompt-71d0c3b9a44e", "experiment-controller", "enough data at share 0.05 and no guard fired"},
		{"experiment.created", "experiment/exp-prompt-71d0c3b9a44e", "rollout", ""},
		{"model.state", "model/prompt-71d0c3b9a44e", "swap", "probe answered as the trainer's"},
		{"model.registered", "model/prompt-71d0c3b9a44e", "trainer-bridge", "all 5 gates passed"},
		{"job.finished", "job/rounds-0002", "trainer-bridge", ""},
		{"job.submitted", "job/rounds-0002", "trigger", "2,011 new pairs"},
		{"model.promoted", "route/prompt", "experiment-controller", "lift +0.41 points [+0.12, +0.70]"},
		{"job.failed", "job/rounds-0001b", "trainer-bridge", "out of memory; retried with half the batch"},
	} {
		o.Events = append(o.Events, Event{wall.Add(-time.Duration(7+5*i) * time.Minute), e.typ, e.entity, e.actor, e.note})
	}
	g := imaging.Grammar()
	for i, p := range cat.Products() {
		if i%11 != 0 || len(o.Creatives) == 16 {
			continue
		}
		fits := p.Fits()
		text := fmt.Sprintf(
			"%s, %s tones, %s, %s",
			fits[i%len(fits)],
			g.Palettes[i%len(g.Palettes)],
			g.Lights[i%len(g.Lights)],
			g.Props[i%len(g.Props)],
		)
		c := Creative{
			ID:          fmt.Sprintf("c-%016x", i+1),
			Product:     p.ID,
			Title:       p.Title,
			Category:    p.Category,
			Version:     r.TreatName,
			Variant:     []string{"control", "treatment"}[i%2],
			Description: text,
			Created:     wall,
			Impressions: int64(180 + i*61%4000),
		}
		c.Clicks = int64(float64(c.Impressions) * (0.02 + 0.03*rng.Float64()))
		if i == 33 {
			c.Impressions, c.Clicks = 0, 0
		}
		if len(o.Creatives) == 5 {
			c.Blocked = "by ana: the price is wrong"
		}
		o.Creatives = append(o.Creatives, c)
	}
	return o
}

// images answers the paths of the sample's creatives with real renderings.
func images(t testing.TB, cat *catalogue.Catalogue, o Overview) http.Handler {
	t.Helper()
	mux := http.NewServeMux()
	for i, c := range o.Creatives {
		p, ok := cat.Get(c.Product)
		if !ok {
			t.Fatalf("no product %s", c.Product)
		}
		im, valid := imaging.Render(p, c.Description, uint64(i), 256)
		if !valid {
			t.Fatalf("description %q does not parse", c.Description)
		}
		var png bytes.Buffer
		if err := imaging.EncodePNG(&png, im); err != nil {
			t.Fatal(err)
		}
		mux.HandleFunc("GET /v1/creatives/"+c.ID+".png", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "image/png")
			_, _ = w.Write(png.Bytes())
		})
	}
	return mux
}
