package simulate

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"ctrloop/serving/experiment/ramp"
)

// suited are users who are shown backgrounds of which 60 % suit their products, the same ones again and again: two
// impressions of one user are correlated by 0.25. Clicks and scores are drawn alike, so that m is the sum of scores.
func suited(w World) World {
	w.CTR, w.Concentration, w.Slope = 0.6, 3, 0
	return w
}

// matchingTrial looks at one step with the guardrail of the matching score, at a true relative loss.
type matchingTrial struct {
	label   string
	world   World
	share   float64
	loss    float64
	perLook int
}

// treated is how many users the treatment had when it was rolled back for its matching score; 0: it was not.
func (t matchingTrial) treated(l *lab) ([]float64, error) {
	const looks = 50
	control, treatment := newCrowd(suited(t.world), 1), newCrowd(suited(t.world), 1-t.loss)
	cfg := ramp.Default()
	x := status([]float64{t.share})
	return each(l, "matching "+t.label, func(rng *rand.Rand) float64 {
		var sums tally
		who, d := &strangers{}, newDoor(rng, t.share)
		for range looks {
			who.batch(&sums, d, t.share, t.perLook, rng, control, treatment, 1, -t.loss)
			b := sums.step
			v := ramp.Look(cfg, x, ramp.Evidence{Metrics: []ramp.Metric{{Name: ramp.MatchingScore, Control: b[0], Treatment: b[1]}}})
			if v.Rule == ramp.GuardrailBroken {
				return float64(b[1].N)
			}
		}
		return 0
	})
}

func runMatching(l *lab) (Table, error) {
	rails := ramp.Default().Guardrails
	rail := rails[slices.IndexFunc(rails, func(g ramp.Guardrail) bool { return g.Metric == ramp.MatchingScore })]
	t := Table{Setup: []string{
		fmt.Sprintf(
			"the controller's guardrail on the matching score of what was shown: margin %g %%, error %g %% one-sided, at one step, 50 looks, from "+
				"%d users of the treatment on",
			100*rail.Margin,
			100*rail.Alpha,
			rail.MinUnits,
		),
		"60 % of what the control shows suits; impressions of ordinary users (or of the heavy tail of the strongly over-dispersed), those of " +
			"one user correlated by 0.25",
	}}
	for _, x := range []matchingTrial{
		{"loss 10 % (the margin), share 1 %", Ordinary(), 0.01, rail.Margin, 2500},
		{"share 5 %", Ordinary(), 0.05, rail.Margin, 1000},
		{"share 50 %", Ordinary(), 0.5, rail.Margin, 500},
		{"share 5 %, heavy tail", Strong(), 0.05, rail.Margin, 1000},
		{"no loss, share 5 %", Ordinary(), 0.05, 0, 1000},
		{"loss 20 %, share 5 %", Ordinary(), 0.05, 0.2, 1000},
		{"loss 50 %, share 1 %", Ordinary(), 0.01, 0.5, 2500},
		{"loss 50 %, share 5 %", Ordinary(), 0.05, 0.5, 1000},
		{"loss 50 %, share 50 %", Ordinary(), 0.5, 0.5, 500},
	} {
		treated, err := x.treated(l)
		if err != nil {
			return t, err
		}
		fired := share("rolled back", count(treated, func(n float64) bool { return n > 0 }), len(treated))
		if x.loss <= rail.Margin {
			fired = fired.that(AtMost, rail.Alpha)
		}
		t.Rows = append(t.Rows, Row{x.label, []Cell{
			value("users a look", Number, float64(x.perLook)), fired,
			quantile("treated users at the roll-back, median", 0.5, pick(treated, func(n float64) (float64, bool) { return n, n > 0 })),
		}})
	}
	return t, nil
}
