package lab

import (
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
)

// Over is a figure over worlds.
type Over struct {
	Median float64 `json:"median"`
	Worst  float64 `json:"worst"`
	// Interval of the mean over worlds, 95 %, by a bootstrap of worlds and, within each, of products; nil where a
	// figure has none.
	Interval *Interval `json:"interval,omitempty"`
	Worlds   int       `json:"worlds"` // that have the figure
}

// part is one world's value and its bootstrap draws by product.
type part struct {
	value float64 // NaN: this world has none
	draws []float64
}

// over summarises a figure. better is 1 where more is better, -1 where less is.
func over(better float64, parts []part) Over {
	parts = slices.DeleteFunc(slices.Clone(parts), func(p part) bool { return math.IsNaN(p.value) })
	if len(parts) == 0 {
		return Over{}
	}
	values := make([]float64, len(parts))
	for i, p := range parts {
		values[i] = better * p.value
	}
	slices.Sort(values)
	return Over{Median: better * median(values), Worst: better * values[0], Interval: intervalOver(parts), Worlds: len(parts)}
}

// median of sorted values.
func median(v []float64) float64 {
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func intervalOver(parts []part) *Interval {
	parts = slices.DeleteFunc(slices.Clone(parts), func(p part) bool { return len(p.draws) == 0 })
	if len(parts) == 0 {
		return nil
	}
	r := rand.New(rand.NewPCG(uint64(len(parts)), 0x5eed5))
	means := make([]float64, 4*draws)
	for i := range means {
		var sum float64
		for range parts {
			p := parts[r.IntN(len(parts))]
			sum += p.draws[r.IntN(len(p.draws))]
		}
		means[i] = sum / float64(len(parts))
	}
	return interval95(means)
}

// Target is a figure that the design asks for, and what was reached.
type Target struct {
	Figure    string   `json:"figure"`
	Statistic string   `json:"statistic"` // what Value is: "median", "worst", ...
	Value     *float64 `json:"value"`     // nil: not measured
	AtLeast   float64  `json:"at_least"`
	Aim       float64  `json:"aim"`
	Met       bool     `json:"met"`
	AimMet    bool     `json:"aim_met"`
	Why       string   `json:"why,omitempty"` // it was not measured, or not met although the value looks like it; or what to know of it
}

// target holds a value against its bounds. above says that the value must be more than the bound, not just as much.
func target(figure, statistic string, o Over, value, atLeast, aim float64, above bool) Target {
	t := Target{Figure: figure, Statistic: statistic, AtLeast: atLeast, Aim: aim}
	if o.Worlds == 0 {
		return t
	}
	t.Value = &value
	t.Met = value > atLeast || !above && value == atLeast
	t.AimMet = t.Met && value >= aim
	return t
}

// verdict in words.
func (t Target) verdict() string {
	switch {
	case t.Value == nil:
		return "not measured"
	case t.AimMet:
		return "aim met"
	case t.Met:
		return "met"
	}
	return "NOT met"
}

// printTargets writes what was asked for and what was reached.
func printTargets(w io.Writer, targets []Target) {
	t := newTable("target", "statistic", "value", "at least", "aim", "")
	for _, g := range targets {
		value := "-"
		if g.Value != nil {
			value = fmt.Sprintf("%.3f", *g.Value)
		}
		verdict := g.verdict()
		if g.Why != "" {
			verdict += ": " + g.Why
		}
		t.row(g.Figure, g.Statistic, value, fmt.Sprintf("%.3g", g.AtLeast), fmt.Sprintf("%.3g", g.Aim), verdict)
	}
	t.print(w)
}

// table is text in columns, the first one to the left and the others to the right.
type table struct{ rows [][]string }

func newTable(head ...string) *table { return &table{[][]string{head}} }

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) print(w io.Writer) {
	wide := make([]int, len(t.rows[0]))
	for _, r := range t.rows {
		for i, c := range r {
			wide[i] = max(wide[i], len([]rune(c)))
		}
	}
	for _, r := range t.rows {
		var line strings.Builder
		for i, c := range r {
			pad := strings.Repeat(" ", wide[i]-len([]rune(c)))
			switch {
			case i == 0:
				line.WriteString("  " + c + pad)
			case i == len(r)-1 && r[i] != t.rows[0][i] && t.rows[0][i] == "": // free text
				line.WriteString("  " + c)
			default:
				line.WriteString("  " + pad + c)
			}
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
	fmt.Fprintln(w)
}
