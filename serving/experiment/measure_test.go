package experiment

import (
	"testing"
	"time"

	"ctrloop/internal/stats"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/experiment/ramp"

	"github.com/google/go-cmp/cmp"
)

func TestMeasured(t *testing.T) {
	st := control.NewState()
	gate := func(v float64) []control.Gate {
		return []control.Gate{{Name: "valid", Value: 0.99, Passed: true}, {Name: "matching", Value: v, Passed: true}}
	}
	st.Models["a"] = &control.ModelStatus{Model: control.Model{Version: "a", Gates: gate(0.6)}}
	st.Models["b"] = &control.ModelStatus{Model: control.Model{Version: "b", Gates: gate(0.5)}}
	st.Models["base"] = &control.ModelStatus{Model: control.Model{Version: "base"}}
	var cs []schemas.Creative
	for i := range 10 {
		cs = append(cs, schemas.Creative{ModelVersion: "a", Valid: true}, schemas.Creative{ModelVersion: "b", Valid: i%5 != 0})
		if i%5 == 0 {
			cs[len(cs)-1].Blocked = "not well formed"
		}
	}
	m := Measured{State: func() *control.State { return st }, Creatives: func() []schemas.Creative { return cs }, Latency: &Latency{}}
	if got, err := m.Generation(t.Context(), "b"); err != nil || got != (ramp.Counts{Total: 10, Failed: 2}) {
		t.Errorf("generation %+v, %v", got, err)
	}
	for i := range 4 {
		step := i / 2 // the first two belong to the step before
		m.Latency.Observe(assign.Assignment{Experiment: "e", Variant: assign.Control, Step: step}, time.Second)
		m.Latency.Observe(assign.Assignment{Experiment: "e", Variant: assign.Treatment, Step: step}, time.Duration(i)*time.Second)
		m.Latency.Observe(assign.Assignment{Variant: assign.Forced, Step: step}, time.Hour)
	}
	x := control.ExperimentStatus{Experiment: control.Experiment{ID: "e", Control: "a", Treatment: "b"}, Step: control.Step{Index: 1}}
	got, err := m.Metrics(t.Context(), x)
	if err != nil {
		t.Fatal(err)
	}
	want := []ramp.Metric{
		{Name: ramp.MatchingScore, Exact: &[2]float64{0.6, 0.5}},
		{Name: ramp.ValidShare, Control: stats.RatioSums{N: 10, M: 10, D: 10, MM: 10, DD: 10, MD: 10}, Treatment: stats.RatioSums{N: 10, M: 8, D: 10, MM: 8, DD: 10, MD: 8}},
		{Name: ramp.GatewaySeconds, Control: stats.RatioSums{N: 2, M: 2, D: 2, MM: 2, DD: 2, MD: 2}, Treatment: stats.RatioSums{N: 2, M: 5, D: 2, MM: 13, DD: 2, MD: 5}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	x.Control, x.Step.Index = "base", 0 // no figure of the base, and a step that is over
	if got, err = m.Metrics(t.Context(), x); err != nil || len(got) != 2 || got[0].Name != ramp.ValidShare || got[1].Control.N != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	for i := range 3 * maxTimed {
		m.Latency.Observe(assign.Assignment{Experiment: string(rune('A' + i)), Variant: assign.Control}, time.Second)
	}
	if len(m.Latency.by) > maxTimed {
		t.Errorf("%d experiments are timed", len(m.Latency.by))
	}
}
