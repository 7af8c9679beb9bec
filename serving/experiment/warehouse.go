package experiment

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"ctrloop/internal/stats"
	"ctrloop/internal/warehouse"
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
	from, args := seen(x, spans)
	var rows []armRow
	err := w.DB.Select(ctx, &rows, `
		SELECT arm AS variant, count() AS n, toFloat64(sum(k)) AS m, toFloat64(sum(c)) AS d,
			toFloat64(sum(k * k)) AS mm, toFloat64(sum(c * c)) AS dd, toFloat64(sum(k * c)) AS md
		FROM (
			SELECT if(`+nobody(x, "unit")+`, '', toString(variant)) AS arm, unit,
				toUInt64(sum(clicks)) AS k, toUInt64(sum(impressions)) AS c
			FROM (`+from+`)
			GROUP BY arm, unit
		)
		GROUP BY arm`, args...)
	if err != nil {
		return ramp.Sums{}, err
	}
	var out ramp.Sums
	for _, r := range rows {
		r.into(&out)
	}
	return out, nil
}

// nobody is the condition that a row has none of the units that the experiment randomises by. Such impressions are not one
// unit that was in both arms; they are counted apart.
func nobody(x control.Experiment, column string) string {
	if x.Unit == "product" {
		return "empty(" + column + ")"
	}
	return column + " = 0"
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
	within, args := InSpans(spans)
	var rows []struct {
		armRow
		Impressions int64 `ch:"impressions"`
	}
	err = w.DB.Select(ctx, &rows, `
		SELECT variant, countIf(c > 0) AS n, sum(k) AS m, sum(c) AS d, sum(k * k) AS mm, sum(c * c) AS dd, sum(k * c) AS md,
			toInt64(sum(every)) AS impressions
		FROM (
			SELECT variant, sum(seen * value) AS k, toFloat64(sumIf(seen, key != '')) AS c, sum(seen) AS every
			FROM (
				SELECT variant, `+unitColumn(x)+` AS unit, toString(creative) AS creative, toUInt64(count()) AS seen
				FROM labels_mature
				WHERE experiment = ? AND NOT (`+nobody(x, unitColumn(x))+`) AND `+within+`
				GROUP BY variant, unit, creative
			) AS shown
			LEFT JOIN scores ON shown.creative = scores.key
			GROUP BY variant, unit
		)
		GROUP BY variant
		SETTINGS join_use_nulls = 0`, append([]any{x.ID}, args...)...)
	if err != nil {
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
	within, args := InSpans(spans)
	var rows []struct {
		Category string `ch:"category"`
		armRow
	}
	err := w.DB.Select(ctx, &rows, `
		SELECT category, variant, count() AS n, toFloat64(sum(k)) AS m, toFloat64(sum(c)) AS d,
			toFloat64(sum(k * k)) AS mm, toFloat64(sum(c * c)) AS dd, toFloat64(sum(k * c)) AS md
		FROM (
			SELECT category, variant, toUInt64(sum(clicked)) AS k, toUInt64(count()) AS c
			FROM labels_mature
			WHERE experiment = ? AND NOT (`+nobody(x, unitColumn(x))+`) AND `+within+`
			GROUP BY category, variant, `+unitColumn(x)+`
		)
		GROUP BY category, variant
		ORDER BY category`, append([]any{x.ID}, args...)...)
	if err != nil {
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
	err := w.DB.Select(ctx, &rows, `
		SELECT toDateTime(first, 'UTC') AS day, toInt64(countIf(variant = 'control')) AS control,
			toInt64(countIf(variant = 'treatment')) AS treatment
		FROM (
			SELECT variant, min(day) AS first
			FROM `+daysOf(x)+`
			WHERE experiment = ? AND NOT (`+nobody(x, unitColumn(x))+`) AND variant IN ('control', 'treatment')
			GROUP BY variant, `+unitColumn(x)+`
		)
		GROUP BY day
		ORDER BY day`, x.ID)
	if err != nil {
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
	from, args := seen(x, spans)
	var rows []struct {
		Units int64 `ch:"units"`
		Both  int64 `ch:"both"`
	}
	err := w.DB.Select(ctx, &rows, `
		SELECT toInt64(count()) AS units, toInt64(countIf(arms > 1)) AS both
		FROM (SELECT uniqExact(variant) AS arms FROM (`+from+`) 
			WHERE NOT (`+nobody(x, "unit")+`) AND variant IN ('control', 'treatment')
			GROUP BY unit
		)`, args...)
	if err != nil || len(rows) == 0 {
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
	err := w.DB.Select(ctx, &rows, `
		SELECT time, step, share, action, rule, lift, lift_low, lift_high, p, srm_p, impressions
		FROM experiment_looks FINAL
		WHERE experiment = ?
		ORDER BY time DESC, step DESC
		LIMIT ?`, id, limit)
	if err != nil {
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

// unitColumn is the column that the experiment randomises by.
func unitColumn(x control.Experiment) string {
	if x.Unit == "product" {
		return "product"
	}
	return "user"
}

// daysOf is the view that has the experiment's units by day, through the rollups.
func daysOf(x control.Experiment) string {
	if x.Unit == "product" {
		return "ctr_days"
	}
	return "user_days"
}

// seen selects variant, unit, clicks and impressions of what lies in the spans, several rows a unit: whole days through
// the rollups, what is left at the ends of a span from labels. A step of some days is some days and two ends.
func seen(x control.Experiment, spans []Span) (string, []any) {
	var selects, whole []string
	var days, ends []any
	var left []Span
	for _, s := range spans {
		from, to := midnightFrom(s.From), s.To.UTC().Truncate(24*time.Hour)
		if !s.To.IsZero() && !from.Before(to) { // not one whole day
			left = append(left, s)
			continue
		}
		within := "day >= toDate(?)"
		days = append(days, from.Format(time.DateOnly))
		if s.From.Before(from) {
			left = append(left, Span{From: s.From, To: from})
		}
		if !s.To.IsZero() {
			within += " AND day < toDate(?)"
			days = append(days, to.Format(time.DateOnly))
			if to.Before(s.To) {
				left = append(left, Span{From: to, To: s.To})
			}
		}
		whole = append(whole, within)
	}
	if len(whole) > 0 {
		selects = append(
			selects,
			"SELECT variant, "+unitColumn(
				x,
			)+" AS unit, clicks, impressions FROM "+daysOf(
				x,
			)+" WHERE experiment = ? AND ("+strings.Join(
				whole,
				" OR ",
			)+")",
		)
		days = append([]any{x.ID}, days...)
	}
	if len(left) > 0 {
		var within string
		within, ends = InSpans(left)
		selects = append(
			selects,
			"SELECT variant, "+unitColumn(
				x,
			)+" AS unit, toUInt64(clicked) AS clicks, toUInt64(1) AS impressions FROM labels_mature WHERE experiment = ? AND "+within,
		)
		ends = append([]any{x.ID}, ends...)
	}
	return strings.Join(selects, " UNION ALL "), append(days, ends...)
}

// midnightFrom is the first midnight, UTC, that is not before t; for the zero time that of 1970.
func midnightFrom(t time.Time) time.Time {
	if t.IsZero() {
		return time.Unix(0, 0).UTC()
	}
	day := t.UTC().Truncate(24 * time.Hour)
	if day.Before(t) {
		day = day.AddDate(0, 0, 1)
	}
	return day
}

// InSpans is the condition that an impression lies in one of the spans, and its arguments.
func InSpans(spans []Span) (string, []any) {
	var or []string
	var args []any
	for _, s := range spans {
		from, to := int64(0), int64(10_000_000_000_000) // 1970 to 2286, inside the range of DateTime64(3)
		if !s.From.IsZero() {
			from = s.From.UnixMilli()
		}
		if !s.To.IsZero() {
			to = s.To.UnixMilli()
		}
		or = append(or, "event_time >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') AND event_time < fromUnixTimestamp64Milli(toInt64(?), 'UTC')")
		args = append(args, from, to)
	}
	return "(" + strings.Join(or, " OR ") + ")", args
}

// Look keeps the look in the table experiment_looks. Figures that are not known are NaN there.
func (w Warehouse) Look(ctx context.Context, l Look) error {
	f := l.Figures
	return w.DB.Exec(
		ctx,
		`INSERT INTO experiment_looks (experiment, time, step, share, action, rule, lift, lift_low, lift_high, p, srm_p, impressions)
		SELECT ?, fromUnixTimestamp64Milli(toInt64(?), 'UTC'), ?, ?, ?, ?,
			toFloat64(?), toFloat64(?), toFloat64(?), toFloat64(?), toFloat64(?), ?`,
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
