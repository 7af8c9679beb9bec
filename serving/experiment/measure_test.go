package experiment

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"ctrloop/internal/stats"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/experiment/ramp"

	"github.com/google/go-cmp/cmp"
)

// shownScores is a Shown that notes which scores it was asked with.
type shownScores struct {
	sums   ScoreSums
	scores map[string]float64
	err    error
}

func (s *shownScores) Scores(_ context.Context, _ control.Experiment, _ []Span, scores map[string]float64) (ScoreSums, error) {
	s.scores = scores
	return s.sums, s.err
}

func TestMeasured(t *testing.T) {
	var cs []schemas.Creative
	for i := range 10 {
		id := strconv.Itoa(i)
		cs = append(
			cs,
			schemas.Creative{ID: "a" + id, ModelVersion: "a", Valid: true, Matching: 1, MatchingJudge: "rule"},
			schemas.Creative{ID: "b" + id, ModelVersion: "b", Valid: i%5 != 0, MatchingJudge: "rule"},
		)
		if i%5 == 0 {
			cs[len(cs)-1].Blocked = "not well formed"
			cs[len(cs)-1].MatchingJudge = ""
		}
	}
	// Another judge has scored one arm well and the other hardly.
	for i := range 30 {
		cs = append(cs, schemas.Creative{ID: "x" + strconv.Itoa(i), ModelVersion: "a", Valid: true, Matching: 0.1, MatchingJudge: "another"})
	}
	cs = append(cs, schemas.Creative{ID: "y", ModelVersion: "b", Valid: true, Matching: 0.9, MatchingJudge: "another"})
	seen := &shownScores{
		sums: ScoreSums{Sums: ramp.Sums{Control: stats.RatioSums{N: 3, M: 3, D: 3, MM: 3, DD: 3, MD: 3}}, Impressions: [2]int64{4, 5}},
	}
	m := Measured{Creatives: func() []schemas.Creative { return cs }, Shown: seen, Latency: &Latency{}}
	if got, err := m.Generation(t.Context(), "b"); err != nil || got != (ramp.Counts{Total: 11, Failed: 2}) {
		t.Errorf("generation %+v, %v", got, err)
	}
	for i := range 4 {
		step := i / 2 // the first two belong to the step before
		m.Latency.Observe(assign.Assignment{Experiment: "e", Variant: assign.Control, Step: step}, time.Second)
		m.Latency.Observe(assign.Assignment{Experiment: "e", Variant: assign.Treatment, Step: step}, time.Duration(i)*time.Second)
		m.Latency.Observe(assign.Assignment{Variant: assign.Forced, Step: step}, time.Hour)
	}
	x := control.ExperimentStatus{Experiment: control.Experiment{ID: "e", Control: "a", Treatment: "b"}, Step: control.Step{Index: 1}}
	got, err := m.Metrics(t.Context(), x, []Span{{}})
	if err != nil {
		t.Fatal(err)
	}
	want := []ramp.Metric{
		{Name: ramp.MatchingScore, Control: seen.sums.Control, Note: "rule scored 3 of 4 impressions of the control and 0 of 5"},
		{
			Name:      ramp.ValidShare,
			Control:   stats.RatioSums{N: 40, M: 40, D: 40, MM: 40, DD: 40, MD: 40},
			Treatment: stats.RatioSums{N: 11, M: 9, D: 11, MM: 9, DD: 11, MD: 9},
		},
		{
			Name:      ramp.GatewaySeconds,
			Control:   stats.RatioSums{N: 2, M: 2, D: 2, MM: 2, DD: 2, MD: 2},
			Treatment: stats.RatioSums{N: 2, M: 5, D: 2, MM: 13, DD: 2, MD: 5},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	wantScores := map[string]float64{}
	for _, c := range cs {
		if c.MatchingJudge == "rule" {
			wantScores[c.ID] = c.Matching
		}
	}
	if d := cmp.Diff(wantScores, seen.scores); d != "" || len(wantScores) != 18 {
		t.Errorf("scores of two judges were mixed (-want +got):\n%s", d)
	}
	seen.err = errors.New("the warehouse is gone")
	if _, err := m.Metrics(t.Context(), x, []Span{{}}); !errors.Is(err, seen.err) {
		t.Errorf("a guard that could not look: %v", err)
	}
	x.Control, x.Step.Index = "base", 0 // nobody has scored the base's creatives, and a step that is over
	if got, err = m.Metrics(t.Context(), x, nil); err != nil || len(got) != 2 || got[0].Name != ramp.ValidShare || got[1].Control.N != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	for i := range 3 * maxTimed {
		m.Latency.Observe(assign.Assignment{Experiment: string(rune('A' + i)), Variant: assign.Control}, time.Second)
	}
	if len(m.Latency.by) > maxTimed {
		t.Errorf("%d experiments are timed", len(m.Latency.by))
	}
}
