package experiment

import (
	"context"
	"fmt"
	"maps"
	"slices"
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
	// Creatives are all there are (creatives.v1).
	Creatives func() []schemas.Creative
	Shown     Shown    // may be nil
	Latency   *Latency // may be nil
}

// Shown says what the units of an experiment were shown, by mature impressions within the spans.
type Shown interface {
	// Scores adds up, for each unit and arm, the scores of the creatives that it was shown, once per impression.
	// Impressions of creatives without a score count in Impressions only.
	Scores(ctx context.Context, x control.Experiment, spans []Span, scores map[string]float64) (ScoreSums, error)
}

// ScoreSums are sums over units with m the scores of what a unit was shown and d the impressions that have one.
type ScoreSums struct {
	ramp.Sums
	Impressions [2]int64 // control, treatment: all, scored or not
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

// Metrics measures both arms: matching by the scores of what was shown in the spans; well-formed descriptions by the
// versions' creatives; latency by the answers of the present step.
func (m Measured) Metrics(ctx context.Context, x control.ExperimentStatus, spans []Span) ([]ramp.Metric, error) {
	var out []ramp.Metric
	creatives := m.Creatives()
	if judge, scores := matching(x.Experiment, creatives); m.Shown != nil && judge != "" {
		s, err := m.Shown.Scores(ctx, x.Experiment, spans, scores)
		if err != nil {
			return nil, fmt.Errorf("matching scores of what was shown: %w", err)
		}
		out = append(out, ramp.Metric{Name: ramp.MatchingScore, Control: s.Control, Treatment: s.Treatment,
			Note: fmt.Sprintf(
				"%s scored %.0f of %d impressions of the control and %.0f of %d",
				judge,
				s.Control.D,
				s.Impressions[0],
				s.Treatment.D,
				s.Impressions[1],
			)})
	}
	valid := ramp.Metric{Name: ramp.ValidShare}
	for _, c := range creatives {
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

// matching has the scores of both arms' creatives by the one judge that scored the most of the arm that it scored
// fewer of: scores of two judges do not compare. No judge scored both: "".
func matching(x control.Experiment, creatives []schemas.Creative) (judge string, scores map[string]float64) {
	by := map[string]*[2]int{}
	for _, c := range creatives {
		if arm := slices.Index([]string{x.Control, x.Treatment}, c.ModelVersion); arm >= 0 && c.MatchingJudge != "" {
			if by[c.MatchingJudge] == nil {
				by[c.MatchingJudge] = &[2]int{}
			}
			by[c.MatchingJudge][arm]++
		}
	}
	most := 0
	for _, name := range slices.Sorted(maps.Keys(by)) {
		if n := min(by[name][0], by[name][1]); n > most {
			judge, most = name, n
		}
	}
	if judge == "" {
		return "", nil
	}
	scores = map[string]float64{}
	for _, c := range creatives {
		if c.MatchingJudge == judge && (c.ModelVersion == x.Control || c.ModelVersion == x.Treatment) {
			scores[c.ID] = c.Matching
		}
	}
	return judge, scores
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
