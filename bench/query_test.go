package bench

import (
	"strings"
	"testing"

	"ctrloop/internal/warehouse/query"
)

// A target that was measured at another size says so, and one that is missed is not called met.
func TestQueryTargets(t *testing.T) {
	rep := QueryReport{Config: QueryConfig{Labels: targetLabels}, BytesPerLabel: 41,
		Questions: []QuestionCost{{Name: query.BenchLift, MedianMS: 999}, {Name: query.BenchRawWeek, MedianMS: 5001}}}
	got := targets(rep)
	if len(got) != 3 || !got[0].Met || got[1].Met || got[2].Met || got[0].Scale != "" {
		t.Errorf("%+v", got)
	}
	rep.Config.Labels = 1000
	for _, x := range targets(rep) {
		if !strings.Contains(x.Scale, "1000 labels") {
			t.Errorf("%+v does not say that it is of another size", x)
		}
	}
	rep.Targets = got
	var b strings.Builder
	if err := rep.Print(&b); err != nil || !strings.Contains(b.String(), "raw scan of one experiment-week, s") {
		t.Errorf("%v, %s", err, b.String())
	}
}

// The questions that targets are about are asked, once each, and no two have one name.
func TestQueryQuestions(t *testing.T) {
	seen := map[string]bool{}
	for _, q := range query.BenchQuestions("id") {
		if seen[q.Name] {
			t.Errorf("%s is asked twice", q.Name)
		}
		seen[q.Name] = true
	}
	if !seen[query.BenchLift] || !seen[query.BenchRawWeek] {
		t.Error("a target has no question")
	}
}
