package experiment

import (
	"context"
	"sync"
	"time"

	"ctrloop/internal/stats"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/experiment/ramp"
)

// Measured is the Health and the Metrics of a running system. What it says of creatives is read from their topic, so
// a restart changes nothing; latencies are those that this process saw in the present step.
type Measured struct {
	// State has the versions with the figures of their gates.
	State func() *control.State
	// Creatives are all there are (creatives.v1).
	Creatives func() []schemas.Creative
	Latency   *Latency // may be nil
}

var (
	_ Health  = Measured{}
	_ Metrics = Measured{}
)

// Generation counts the version's creatives and those of them that a guard has blocked.
func (m Measured) Generation(_ context.Context, version string) (ramp.Counts, error) {
	var out ramp.Counts
	for _, c := range m.Creatives() {
		if c.ModelVersion == version {
			out.Total++
			if c.Blocked != "" {
				out.Failed++
			}
		}
	}
	return out, nil
}

// matchingGate is the gate of a round that measures, on held-out products, how often backgrounds suit them.
const matchingGate = "matching"

// Metrics measures both arms: matching by the versions' held-out figures, where both have one; well-formed
// descriptions by their creatives; latency by the answers of the present step.
func (m Measured) Metrics(_ context.Context, x control.ExperimentStatus) ([]ramp.Metric, error) {
	var out []ramp.Metric
	st := m.State()
	c, inControl := matching(st.Models[x.Control])
	t, inTreatment := matching(st.Models[x.Treatment])
	if inControl && inTreatment {
		out = append(out, ramp.Metric{Name: ramp.MatchingScore, Exact: &[2]float64{c, t}})
	}
	valid := ramp.Metric{Name: ramp.ValidShare}
	for _, c := range m.Creatives() {
		arm := map[string]*stats.RatioSums{x.Control: &valid.Control, x.Treatment: &valid.Treatment}[c.ModelVersion]
		switch {
		case arm == nil:
		case c.Valid:
			arm.Observe(1, 1)
		default:
			arm.Observe(0, 1)
		}
	}
	out = append(out, valid)
	if m.Latency != nil {
		out = append(out, m.Latency.metric(x.ID, x.Step.Index))
	}
	return out, nil
}

func matching(m *control.ModelStatus) (float64, bool) {
	if m != nil {
		for _, g := range m.Gates {
			if g.Name == matchingGate {
				return g.Value, true
			}
		}
	}
	return 0, false
}

// maxTimed bounds the experiments whose answers are timed.
const maxTimed = 64

// Latency sums the times of answers by arm, of the present step only: over several steps the mix of the arms would
// change while the load does. The zero value is ready; safe for concurrent use.
type Latency struct {
	mu sync.Mutex
	by map[string]*timed
}

type timed struct {
	step int
	ramp.Metric
}

// Observe takes note of an answer. Answers outside of experiments do not count.
func (l *Latency) Observe(a assign.Assignment, took time.Duration) {
	if a.Experiment == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.by[a.Experiment]
	if t == nil || t.step != a.Step {
		if l.by == nil || len(l.by) >= maxTimed {
			l.by = map[string]*timed{} // of experiments that have ended, most of them
		}
		t = &timed{step: a.Step}
		l.by[a.Experiment] = t
	}
	arm := &t.Control
	if a.Variant == assign.Treatment {
		arm = &t.Treatment
	}
	arm.Observe(took.Seconds(), 1)
}

func (l *Latency) metric(experiment string, step int) ramp.Metric {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := ramp.Metric{}
	if t := l.by[experiment]; t != nil && t.step == step {
		m = t.Metric
	}
	m.Name = ramp.GatewaySeconds
	return m
}
