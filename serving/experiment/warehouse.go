package experiment

import (
	"context"
	"fmt"
	"slices"
	"time"

	"ctrloop/internal/stats"
	"ctrloop/internal/warehouse"
	"ctrloop/internal/warehouse/query"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/experiment/ramp"
)

// Warehouse is the Source, the LookSink and the Reports of a running system. The sums are those of the view experiment_results
// (mature impressions only, no bots, latest label of each), cut to spans of event time and by either unit.
type Warehouse struct{ DB *warehouse.DB }

var (
	_ Source   = Warehouse{}
	_ LookSink = Warehouse{}
	_ Reports  = Warehouse{}
	_ Shown    = Warehouse{}
)

type armRow struct {
	Variant string  `ch:"variant"`
	N       uint64  `ch:"n"`
	M       float64 `ch:"m"`
	D       float64 `ch:"d"`
	MM      float64 `ch:"mm"`
	DD      float64 `ch:"dd"`
	MD      float64 `ch:"md"`
}

// Sums reads both arms in one query.
func (w Warehouse) Sums(ctx context.Context, x control.Experiment, spans []Span) (ramp.Sums, error) {
	if len(spans) == 0 {
		return ramp.Sums{}, nil
	}
	return w.arms(ctx, query.ArmSums(x.ID, query.UnitOf(x.Unit), spans))
}

// arms puts the rows of a query of both arms together.
func (w Warehouse) arms(ctx context.Context, q query.Query) (ramp.Sums, error) {
	var out ramp.Sums
	var rows []armRow
	if err := w.DB.Select(ctx, &rows, q.Text, q.Args...); err != nil {
		return out, err
	}
	for _, r := range rows {
		r.into(&out)
	}
	return out, nil
}

// into adds the row to its arm; what has no unit (the variant is empty) or a variant that the experiment does not have is
// counted apart: anybody at the edge can write a variant, and that must not stop a look.
func (r armRow) into(out *ramp.Sums) {
	s := stats.RatioSums{N: int64(r.N), M: r.M, D: r.D, MM: r.MM, DD: r.DD, MD: r.MD}
	switch r.Variant {
	case assign.Control:
		out.Control = s
	case assign.Treatment:
		out.Treatment = s
	case "":
		out.Apart.Anonymous += int64(r.D)
	default:
		out.Apart.Foreign += int64(r.D)
	}
}

// Scores reads both arms in one query, to which the scores go as a table.
func (w Warehouse) Scores(ctx context.Context, x control.Experiment, spans []Span, scores map[string]float64) (out ScoreSums, err error) {
	if len(spans) == 0 {
		return out, nil
	}
	ctx, err = warehouse.WithNumbers(ctx, "scores", scores)
	if err != nil {
		return out, err
	}
	var rows []struct {
		armRow
		Impressions int64 `ch:"impressions"`
	}
	q := query.ArmScores(x.ID, query.UnitOf(x.Unit), spans)
	if err := w.DB.Select(ctx, &rows, q.Text, q.Args...); err != nil {
		return out, err
	}
	for _, r := range rows {
		r.into(&out.Sums)
		switch r.Variant {
		case assign.Treatment:
			out.Impressions[1] = r.Impressions
		case assign.Control:
			out.Impressions[0] = r.Impressions
		}
	}
	return out, nil
}

// Categories reads the sums of both arms in each category.
func (w Warehouse) Categories(ctx context.Context, x control.Experiment, spans []Span) ([]CategorySums, error) {
	if len(spans) == 0 {
		return nil, nil
	}
	var rows []struct {
		Category string `ch:"category"`
		armRow
	}
	q := query.ArmSumsByCategory(x.ID, query.UnitOf(x.Unit), spans)
	if err := w.DB.Select(ctx, &rows, q.Text, q.Args...); err != nil {
		return nil, err
	}
	var out []CategorySums
	for _, r := range rows {
		if len(out) == 0 || out[len(out)-1].Category != r.Category {
			out = append(out, CategorySums{Category: r.Category})
		}
		r.into(&out[len(out)-1].Sums)
	}
	return out, nil
}

// Arrivals counts units by the day on which they were first seen.
func (w Warehouse) Arrivals(ctx context.Context, x control.Experiment) ([]Arrivals, error) {
	var rows []struct {
		Day       time.Time `ch:"day"`
		Control   int64     `ch:"control"`
		Treatment int64     `ch:"treatment"`
	}
	q := query.UnitArrivals(x.ID, query.UnitOf(x.Unit))
	if err := w.DB.Select(ctx, &rows, q.Text, q.Args...); err != nil {
		return nil, err
	}
	out := make([]Arrivals, len(rows))
	for i, r := range rows {
		out[i] = Arrivals{r.Day.UTC(), r.Control, r.Treatment}
	}
	return out, nil
}

// Multiple counts units seen in both arms.
func (w Warehouse) Multiple(ctx context.Context, x control.Experiment, spans []Span) (Multiple, error) {
	if len(spans) == 0 {
		return Multiple{}, nil
	}
	var rows []struct {
		Units int64 `ch:"units"`
		Both  int64 `ch:"both"`
	}
	q := query.UnitsInBothArms(x.ID, query.UnitOf(x.Unit), spans)
	if err := w.DB.Select(ctx, &rows, q.Text, q.Args...); err != nil || len(rows) == 0 {
		return Multiple{}, err
	}
	return Multiple(rows[0]), nil
}

// Looks reads the newest looks on record, oldest first.
func (w Warehouse) Looks(ctx context.Context, id string, limit int) ([]LookRow, error) {
	var rows []struct {
		Time        time.Time `ch:"time"`
		Step        uint16    `ch:"step"`
		Share       float64   `ch:"share"`
		Action      string    `ch:"action"`
		Rule        string    `ch:"rule"`
		Lift        float64   `ch:"lift"`
		Low         float64   `ch:"lift_low"`
		High        float64   `ch:"lift_high"`
		P           float64   `ch:"p"`
		SRMP        float64   `ch:"srm_p"`
		Impressions int64     `ch:"impressions"`
	}
	if err := w.DB.Select(ctx, &rows, query.Text("looks"), id, limit); err != nil {
		return nil, err
	}
	slices.Reverse(rows)
	out := make([]LookRow, len(rows))
	for i, r := range rows {
		out[i] = LookRow{
			r.Time.UTC(),
			int(r.Step) + 1, // the table has the index
			r.Share,
			r.Action,
			r.Rule,
			ramp.Num(r.Lift),
			ramp.Num(r.Low),
			ramp.Num(r.High),
			ramp.Num(r.P),
			ramp.Num(r.SRMP),
			r.Impressions,
		}
	}
	return out, nil
}

// RecordLook writes the look in the table experiment_looks. Figures that are not known are NaN there.
func (w Warehouse) RecordLook(ctx context.Context, l Look) error {
	f := l.Figures
	return w.DB.Exec(
		ctx,
		query.Text("insert_look"),
		l.Experiment,
		l.Time.UnixMilli(),
		l.Step.Index,
		l.Step.Share,
		string(l.Action),
		string(l.Rule),
		text(f.Relative),
		text(f.RelativeLow),
		text(f.RelativeHigh),
		text(f.P),
		text(f.SRMP),
		f.Control.Impressions+f.Treatment.Impressions,
	)
}

// text is the number as ClickHouse reads it, "NaN" and "+Inf" included; %v keeps every digit.
func text(n ramp.Num) string { return fmt.Sprintf("%v", float64(n)) }
