package query

import (
	"strings"
	"text/template"
	"time"
)

// Query is a text with its arguments, in the order of its question marks.
type Query struct {
	Text string
	Args []any
}

// Span is a part of event time: From <= t < To. Zero times leave that end open.
type Span struct{ From, To time.Time }

// Unit is what an experiment randomises by; it is the name of its column.
type Unit string

// Units of randomisation.
const (
	User    Unit = "user"
	Product Unit = "product"
)

// UnitOf is the unit of the name that an experiment has for it; any other name than that of the product means the user.
func UnitOf(name string) Unit {
	if name == string(Product) {
		return Product
	}
	return User
}

// nobody is the condition that a row has none of the units. Such impressions are not one unit that was in both arms; they are
// counted apart or left out.
func (u Unit) nobody(column string) string {
	if u == Product {
		return "empty(" + column + ")"
	}
	return column + " = 0"
}

// days is the view that has the units by day, through the rollups.
func (u Unit) days() string {
	if u == Product {
		return "ctr_days"
	}
	return "user_days"
}

// parts are what a text leaves open, by name.
type parts map[string]string

// compose fills the places {{.name}} of a query's text. A part that is missing is a mistake in the program.
func compose(name string, p parts) string {
	t := template.Must(template.New(name).Option("missingkey=error").Parse(Text(name)))
	var out strings.Builder
	if err := t.Execute(&out, p); err != nil {
		panic(err)
	}
	return out.String()
}

// parts are those that nearly all queries of an experiment have.
func (u Unit) parts(within string) parts {
	return parts{"unit": string(u), "nobody": u.nobody(string(u)), "within": within}
}

// inSpans is the condition that an impression lies in one of the spans, and its arguments. Without a span none does.
func inSpans(spans []Span) (string, []any) {
	if len(spans) == 0 {
		return "(0)", nil
	}
	or := make([]string, 0, len(spans))
	args := make([]any, 0, 2*len(spans))
	for _, s := range spans {
		from, to := int64(0), int64(10_000_000_000_000) // 1970 to 2286, inside the range of DateTime64(3)
		if !s.From.IsZero() {
			from = s.From.UnixMilli()
		}
		if !s.To.IsZero() {
			to = s.To.UnixMilli()
		}
		or = append(or, "event_time >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') "+
			"AND event_time < fromUnixTimestamp64Milli(toInt64(?), 'UTC')")
		args = append(args, from, to)
	}
	return "(" + strings.Join(or, "\n        OR ") + ")", args
}
