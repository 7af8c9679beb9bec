package query

import (
	"slices"
	"strings"
	"time"
)

// ArmSums are the sums of clicks and impressions over the units of both arms.
func ArmSums(experiment string, unit Unit, spans []Span) Query {
	seen, args := seenIn(experiment, unit, spans)
	return Query{compose("arm_sums", parts{"nobody": unit.nobody("unit"), "seen": seen}), args}
}

// UnitsInBothArms counts the units, and those that were seen in both arms.
func UnitsInBothArms(experiment string, unit Unit, spans []Span) Query {
	seen, args := seenIn(experiment, unit, spans)
	return Query{compose("units_in_both_arms", parts{"nobody": unit.nobody("unit"), "seen": seen}), args}
}

// ArmSumsByCategory are the sums over the units of both arms in each category.
func ArmSumsByCategory(experiment string, unit Unit, spans []Span) Query {
	return within("arm_sums_by_category", experiment, unit, spans)
}

// ArmScores are the sums of what the units of both arms were shown; the table scores must go with the query.
func ArmScores(experiment string, unit Unit, spans []Span) Query {
	return within("arm_scores", experiment, unit, spans)
}

// ImpressionsApart counts the impressions that belong to no unit of an arm.
func ImpressionsApart(experiment string, unit Unit, spans []Span) Query {
	return within("impressions_apart", experiment, unit, spans)
}

func within(name, experiment string, unit Unit, spans []Span) Query {
	condition, args := inSpans(spans)
	return Query{compose(name, unit.parts(condition)), append([]any{experiment}, args...)}
}

// UnitArrivals counts the units of both arms by the day on which they were first seen.
func UnitArrivals(experiment string, unit Unit) Query {
	p := unit.parts("")
	p["days"] = unit.days()
	return Query{compose("unit_arrivals", p), []any{experiment}}
}

// Weighted is a part of event time in which an impression has the weight of its arm.
type Weighted struct {
	Spans              []Span
	Control, Treatment float64
}

// ArmSumsWeighted are the sums over the units of both arms with weights. The parts must not overlap.
func ArmSumsWeighted(experiment string, unit Unit, of []Weighted) Query {
	var weights, conditions []string
	var weightArgs, args []any
	for _, w := range of {
		condition, spanArgs := inSpans(w.Spans)
		weights = append(weights, condition+", if(variant = 'treatment', toFloat64(?), toFloat64(?))")
		weightArgs = append(append(weightArgs, spanArgs...), w.Treatment, w.Control)
		conditions, args = append(conditions, condition), append(args, spanArgs...)
	}
	p := unit.parts(strings.Join(conditions, " OR "))
	p["weights"] = strings.Join(weights, ", ")
	return Query{compose("arm_sums_weighted", p), slices.Concat(weightArgs, []any{experiment}, args)}
}

// ArmSumsCovariate are the sums over the units of both arms, with what the units did in the span before.
func ArmSumsCovariate(experiment string, unit Unit, spans []Span, before Span, byCategory bool) Query {
	condition, args := inSpans(spans)
	earlier, beforeArgs := inSpans([]Span{before})
	p := unit.parts(condition)
	p["before"], p["category"] = earlier, "''"
	if byCategory {
		p["category"] = "toString(category)"
	}
	return Query{compose("arm_sums_covariate", p), slices.Concat([]any{experiment}, args, beforeArgs)}
}

// Phase is a part of a ramp: when it began and when it had settled, event time, Unix ms.
type Phase struct{ BeganMS, SettledMS int64 }

// UnitPhases counts the units of both arms by the phase, from 1, in which they were first seen.
func UnitPhases(experiment string, unit Unit, phases []Phase) Query {
	began, settled := make([]int64, len(phases)), make([]int64, len(phases))
	for i, p := range phases {
		began[i], settled[i] = p.BeganMS, p.SettledMS
	}
	return Query{compose("unit_phases", unit.parts("")), []any{began, experiment, settled}}
}

// Decisions are at most limit logged decisions of an experiment, and of the policy that explored in its place.
func Decisions(experiment, explored string, spans []Span, limit int) Query {
	condition, args := inSpans(spans)
	return Query{compose("decisions", parts{"within": condition}), slices.Concat([]any{experiment, explored}, args, []any{limit})}
}

// seenIn selects variant, unit, clicks and impressions of what lies in the spans, several rows a unit: whole days through
// the rollups, what is left at the ends of a span from labels. A step of some days is some days and two ends.
func seenIn(experiment string, unit Unit, spans []Span) (string, []any) {
	var selects, whole []string
	var days, ends []any
	var left []Span
	for _, s := range spans {
		from, to := midnightFrom(s.From), s.To.UTC().Truncate(24*time.Hour)
		if !s.To.IsZero() && !from.Before(to) { // not one whole day
			left = append(left, s)
			continue
		}
		condition := "day >= toDate(?)"
		days = append(days, from.Format(time.DateOnly))
		if s.From.Before(from) {
			left = append(left, Span{From: s.From, To: from})
		}
		if !s.To.IsZero() {
			condition += " AND day < toDate(?)"
			days = append(days, to.Format(time.DateOnly))
			if to.Before(s.To) {
				left = append(left, Span{From: to, To: s.To})
			}
		}
		whole = append(whole, condition)
	}
	if len(whole) > 0 {
		selects = append(selects, "SELECT variant, "+string(unit)+" AS unit, clicks, impressions FROM "+unit.days()+
			" WHERE experiment = ? AND ("+strings.Join(whole, " OR ")+")")
		days = append([]any{experiment}, days...)
	}
	if len(left) > 0 || len(whole) == 0 {
		var condition string
		condition, ends = inSpans(left)
		selects = append(selects, "SELECT variant, "+string(unit)+" AS unit, toUInt64(clicked) AS clicks, toUInt64(1) AS impressions "+
			"FROM labels_mature WHERE experiment = ? AND "+condition)
		ends = append([]any{experiment}, ends...)
	}
	return strings.Join(selects, "\n        UNION ALL\n        "), append(days, ends...)
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
