package experiment

import (
	"context"
	"fmt"
	"strings"

	"ctrloop/internal/stats"
	"ctrloop/internal/warehouse"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/experiment/ramp"
)

// Warehouse is the Source and the LookSink of a running system. The sums are those of the view experiment_results
// (mature impressions only, no bots, latest label of each), cut to spans of event time and by either unit.
type Warehouse struct{ DB *warehouse.DB }

var (
	_ Source   = Warehouse{}
	_ LookSink = Warehouse{}
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
	within, args := inSpans(spans)
	var rows []armRow
	err := w.DB.Select(ctx, &rows, `
		SELECT variant, count() AS n, toFloat64(sum(k)) AS m, toFloat64(sum(c)) AS d,
			toFloat64(sum(k * k)) AS mm, toFloat64(sum(c * c)) AS dd, toFloat64(sum(k * c)) AS md
		FROM (
			SELECT variant, toUInt64(sum(clicked)) AS k, toUInt64(count()) AS c
			FROM labels_mature
			WHERE experiment = ? AND `+within+`
			GROUP BY variant, `+unitColumn(x)+`
		)
		GROUP BY variant`, append([]any{x.ID}, args...)...)
	if err != nil {
		return ramp.Sums{}, err
	}
	var out ramp.Sums
	for _, r := range rows {
		s := stats.RatioSums{N: int64(r.N), M: r.M, D: r.D, MM: r.MM, DD: r.DD, MD: r.MD}
		switch r.Variant {
		case assign.Control:
			out.Control = s
		case assign.Treatment:
			out.Treatment = s
		default:
			return ramp.Sums{}, fmt.Errorf("impressions of experiment %s have the variant %q, want control or treatment", x.ID, r.Variant)
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

// inSpans is the condition that an impression lies in one of the spans, and its arguments.
func inSpans(spans []Span) (string, []any) {
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
	return w.DB.Exec(ctx, `INSERT INTO experiment_looks (experiment, time, step, share, action, rule, lift, lift_low, lift_high, p, srm_p, impressions)
		SELECT ?, fromUnixTimestamp64Milli(toInt64(?), 'UTC'), ?, ?, ?, ?, toFloat64(?), toFloat64(?), toFloat64(?), toFloat64(?), toFloat64(?), ?`,
		l.Experiment, l.Time.UnixMilli(), l.Step.Index, l.Step.Share, string(l.Action), string(l.Rule),
		text(f.Relative), text(f.RelativeLow), text(f.RelativeHigh), text(f.P), text(f.SRMP), f.Control.Impressions+f.Treatment.Impressions)
}

// text is the number as ClickHouse reads it, "NaN" and "+Inf" included; %v keeps every digit.
func text(n ramp.Num) string { return fmt.Sprintf("%v", float64(n)) }
