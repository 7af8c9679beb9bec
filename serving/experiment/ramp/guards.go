package ramp

import (
	"fmt"
	"math"
	"slices"

	"ctrloop/internal/stats"
)

// Metrics that the service measures, beside clicks.
const (
	MatchingScore  = "matching_score"  // how well the backgrounds that a unit was shown suit their products, mean over impressions; 0 to 1
	ValidShare     = "valid_share"     // share of well-formed descriptions; a unit is a creative
	GatewaySeconds = "gateway_seconds" // time to answer a chat completion, in seconds; a unit is a request
)

// Metric is what both arms got in one metric: a ratio over units, with what is averaged as m (a score, seconds) and
// what it is averaged over as d (impressions, requests).
type Metric struct {
	Name               string
	Control, Treatment stats.RatioSums
	Note               string // on what was measured, for people; may be empty
}

// GuardState is what a guardrail says. The list is closed.
type GuardState string

// States of a guardrail.
const (
	GuardPassed GuardState = "passed"  // within the margin for sure
	GuardOpen   GuardState = "open"    // not decided yet
	GuardFailed GuardState = "failed"  // beyond the margin for sure
	GuardNoData GuardState = "no_data" // not measured, or by too few units
)

// Guard is a guardrail's figures. The loss is how much worse the treatment is than the control, as a share of the
// control's mean; below zero it is better.
type Guard struct {
	Guardrail
	State     GuardState `json:"state"`
	Control   Num        `json:"control"` // means
	Treatment Num        `json:"treatment"`
	Units     [2]int64   `json:"units"` // control, treatment
	// Beyond is the interval of how far the treatment is beyond the margin, in the metric's unit: above 0 it fails.
	BeyondLow  Num    `json:"beyond_low"`
	BeyondHigh Num    `json:"beyond_high"`
	Why        string `json:"why"`
}

func guards(rails []Guardrail, metrics []Metric, nstar float64) []Guard {
	out := make([]Guard, len(rails))
	for i, r := range rails {
		out[i] = Guard{
			Guardrail:  r,
			State:      GuardNoData,
			Control:    Num(math.NaN()),
			Treatment:  Num(math.NaN()),
			BeyondLow:  Num(math.Inf(-1)),
			BeyondHigh: Num(math.Inf(1)),
			Why:        "not measured",
		}
		if at := slices.IndexFunc(metrics, func(m Metric) bool { return m.Name == r.Metric }); at >= 0 {
			out[i].judge(metrics[at], nstar)
		}
	}
	return out
}

func (g *Guard) judge(m Metric, nstar float64) {
	// Worse is sign x (treatment - factor x control): for lower-is-better the factor is above 1.
	sign, factor := -1.0, 1-g.Margin
	if g.Better == LowerIsBetter {
		sign, factor = 1, 1+g.Margin
	}
	g.Units = [2]int64{m.Control.N, m.Treatment.N}
	g.Control, g.Treatment = Num(m.Control.Rate()), Num(m.Treatment.Rate())
	defer func() {
		if m.Note != "" {
			g.Why += "; " + m.Note
		}
	}()
	if n := min(m.Control.N, m.Treatment.N); n < g.MinUnits {
		g.Why = fmt.Sprintf("%d of %d units in the smaller arm", n, g.MinUnits)
		return
	}
	// Guard's contrast is treatment - (1 - margin) control, so a margin below 0 gives a factor above 1.
	iv := stats.Guard(m.Control, m.Treatment, 1-factor, stats.Sequence{Alpha: g.Alpha, NStar: nstar})
	if g.BeyondLow, g.BeyondHigh = Num(iv.Low), Num(iv.High); sign < 0 {
		g.BeyondLow, g.BeyondHigh = Num(-iv.High), Num(-iv.Low)
	}
	switch {
	case g.BeyondLow > 0:
		g.State = GuardFailed
	case g.BeyondHigh <= 0:
		g.State = GuardPassed
	default:
		g.State = GuardOpen
	}
	g.Why = fmt.Sprintf(
		"%.4g against %.4g of the control (%s is better, margin %g %%): beyond the margin by %.4g to %.4g",
		float64(g.Treatment),
		float64(g.Control),
		g.Better,
		100*g.Margin,
		float64(g.BeyondLow),
		float64(g.BeyondHigh),
	)
}
