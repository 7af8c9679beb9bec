package experiment

import (
	"context"
	"fmt"

	"ctrloop/internal/stats"
	"ctrloop/internal/warehouse/query"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/ramp"
)

// Part is the event time of a step, of all visits to it, and the share of the treatment in it.
type Part struct {
	Spans []Span
	Share float64
}

// WholeRamp is the lift over all steps with both arms, each impression weighted with 1 minus the probability of its
// arm ([stats.OverlapWeight]): the share may change without biasing it. It is for reports. The rollout is decided on
// one step alone (docs/adr/0009, 0024), whose lift is among the steps: the two are different estimates, and near the
// critical value they may say different things.
type WholeRamp struct {
	Decides      bool     `json:"decides"` // always false: which lift decides is in the analysis
	Estimator    string   `json:"estimator"`
	Steps        int      `json:"steps"` // that it is made of
	Lift         ramp.Num `json:"lift_absolute"`
	LiftLow      ramp.Num `json:"lift_low"` // a sequence of its own, with the experiment's alpha
	LiftHigh     ramp.Num `json:"lift_high"`
	Relative     ramp.Num `json:"lift_relative"`
	RelativeLow  ramp.Num `json:"lift_relative_low"`
	RelativeHigh ramp.Num `json:"lift_relative_high"`
	P            ramp.Num `json:"p_always_valid"`
	Units        ramp.Num `json:"units_even_split"` // sum of 4 share (1 - share) units: what they are worth at one half

	Missing map[string]string `json:"null_because,omitempty"` // why figures are null, or bound nothing
}

// overlapWeighted names the estimator of WholeRamp.
const overlapWeighted = "overlap weights, totals by unit"

// wholeRamp makes the lift of the figures' steps; nil while nothing can be compared or without a warehouse.
func (s *Service) wholeRamp(ctx context.Context, x control.ExperimentStatus, steps []ramp.Figures) (*WholeRamp, error) {
	if s.d.Reports == nil {
		return nil, nil
	}
	var parts []Part
	units := 0.0
	for _, f := range steps {
		if spans := s.spans(x, f.Step.Index); f.Step.Share < 1 && len(spans) > 0 {
			parts = append(parts, Part{spans, f.Step.Share})
			units += stats.OverlapUnits(float64(f.Control.Units+f.Treatment.Units), f.Step.Share)
		}
	}
	if units == 0 {
		return nil, nil
	}
	sums, err := s.d.Reports.Weighted(ctx, x.Experiment, parts)
	if err != nil {
		return nil, fmt.Errorf("weighted sums of %d steps: %w", len(parts), err)
	}
	if sums.Control.D == 0 || sums.Treatment.D == 0 {
		return nil, nil
	}
	l, err := stats.CompareWeighted(sums.Control, sums.Treatment, units, stats.Sequence{Alpha: x.Alpha, NStar: x.NStar})
	if err != nil {
		return nil, fmt.Errorf("lift of %d steps: %w", len(parts), err)
	}
	return &WholeRamp{
		Estimator: overlapWeighted,
		Steps:     len(parts),
		Lift:      ramp.Num(l.Absolute),
		LiftLow:   ramp.Num(l.Interval.Low),
		LiftHigh:  ramp.Num(l.Interval.High),
		Relative: ramp.Num(
			l.Relative,
		),
		RelativeLow:  ramp.Num(l.RelativeI.Low),
		RelativeHigh: ramp.Num(l.RelativeI.High),
		P:            ramp.Num(l.P),
		Units:        ramp.Num(l.Units),
		Missing:      l.Missing(),
	}, nil
}

// Weighted adds the weighted impressions up by unit and arm in one query. Parts must not overlap.
func (w Warehouse) Weighted(ctx context.Context, x control.Experiment, parts []Part) (ramp.Sums, error) {
	if len(parts) == 0 {
		return ramp.Sums{}, nil
	}
	weighted := make([]query.Weighted, len(parts))
	for i, p := range parts {
		weighted[i] = query.Weighted{Spans: p.Spans, Control: stats.OverlapWeight(1 - p.Share), Treatment: stats.OverlapWeight(p.Share)}
	}
	return w.arms(ctx, query.ArmSumsWeighted(x.ID, query.UnitOf(x.Unit), weighted))
}
