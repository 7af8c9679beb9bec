package simulate

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"ctrloop/serving/experiment/ramp"

	"gonum.org/v1/gonum/mathext"
	"gonum.org/v1/gonum/stat"
)

// Table is the result of one part.
type Table struct {
	Name  string   `json:"name"`
	Title string   `json:"title"`
	Setup []string `json:"setup"` // parameters, in words
	Rows  []Row    `json:"rows"`
}

// Row is one row of a table.
type Row struct {
	Label string `json:"label"`
	Cells []Cell `json:"cells"`
}

// Kind says how a value is written. The list is closed.
type Kind string

// Kinds of values.
const (
	Share    Kind = "share"    // of runs; 0 to 1
	Relative Kind = "relative" // 0.05 is +5 %
	Number   Kind = "number"   // users, looks
)

// Claim says what a share is held against. The list is closed.
type Claim string

// Claims. The interval is the simulation's own.
const (
	NoClaim Claim = ""
	AtMost  Claim = "at most"   // broken where the interval lies above the limit
	AtLeast Claim = "at least"  // broken where the interval lies below the limit
	Exceeds Claim = "more than" // of what is shown to fail: broken where it does not
)

// Cell is one figure.
type Cell struct {
	Column string   `json:"column"`
	Kind   Kind     `json:"kind"`
	Value  ramp.Num `json:"value"` // null: nothing to count, such as a median of no runs
	// Low and High are the 95 % interval of a share by Clopper and Pearson, and null for all else.
	Low   ramp.Num `json:"low"`
	High  ramp.Num `json:"high"`
	Claim Claim    `json:"claim,omitempty"`
	Limit float64  `json:"limit,omitempty"`
}

// share is a cell for hits out of runs.
func share(column string, hits, runs int) Cell {
	lo, hi := ClopperPearson(hits, runs, 0.05)
	value := math.NaN()
	if runs > 0 {
		value = float64(hits) / float64(runs)
	}
	return Cell{Column: column, Kind: Share, Value: ramp.Num(value), Low: ramp.Num(lo), High: ramp.Num(hi)}
}

// that adds a claim.
func (c Cell) that(claim Claim, limit float64) Cell {
	c.Claim, c.Limit = claim, limit
	return c
}

func value(column string, kind Kind, v float64) Cell {
	nan := ramp.Num(math.NaN())
	return Cell{Column: column, Kind: kind, Value: ramp.Num(v), Low: nan, High: nan}
}

func mean(column string, kind Kind, xs []float64) Cell {
	if len(xs) == 0 {
		return value(column, kind, math.NaN())
	}
	return value(column, kind, stat.Mean(xs, nil))
}

func quantile(column string, q float64, xs []float64) Cell {
	if len(xs) == 0 {
		return value(column, Number, math.NaN())
	}
	xs = slices.Clone(xs)
	slices.Sort(xs)
	return value(column, Number, stat.Quantile(q, stat.Empirical, xs, nil))
}

// ClopperPearson is the interval of confidence 1 - alpha of a binomial probability after x of n (Biometrika 26,
// 1934): exact, so a little too wide.
func ClopperPearson(x, n int, alpha float64) (low, high float64) {
	high = 1
	if n <= 0 {
		return 0, 1
	}
	if x > 0 {
		low = mathext.InvRegIncBeta(float64(x), float64(n-x+1), alpha/2)
	}
	if x < n {
		high = mathext.InvRegIncBeta(float64(x+1), float64(n-x), 1-alpha/2)
	}
	return low, high
}

// Broken says whether the figure contradicts its claim.
func (c Cell) Broken() bool {
	switch c.Claim {
	case NoClaim:
		return false
	case AtMost:
		return float64(c.Low) > c.Limit
	case AtLeast:
		return float64(c.High) < c.Limit
	case Exceeds:
		return float64(c.Value) <= c.Limit
	}
	return false
}

// Broken lists the claims that do not hold, in words.
func Broken(tables []Table) []string {
	var out []string
	for _, t := range tables {
		for _, r := range t.Rows {
			for _, c := range r.Cells {
				if c.Broken() {
					out = append(out, fmt.Sprintf("%s, %s: %s: %s", t.Name, r.Label, c.Column, c))
				}
			}
		}
	}
	return out
}

// String is the figure with its interval.
func (c Cell) String() string {
	v := float64(c.Value)
	switch {
	case math.IsNaN(v):
		return "-"
	case c.Kind == Share:
		return fmt.Sprintf("%.1f %% (%.1f-%.1f)", 100*v, 100*float64(c.Low), 100*float64(c.High)) + c.claim()
	case c.Kind == Relative:
		return fmt.Sprintf("%+.2f %%", 100*v)
	}
	return thousands(v)
}

func thousands(v float64) string {
	s := fmt.Sprintf("%.0f", math.Abs(v))
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	if v < 0 {
		return "-" + s
	}
	return s
}

// claim is what the share is held against, and whether it fails.
func (c Cell) claim() string {
	sign := map[Claim]string{AtMost: " <= ", AtLeast: " >= ", Exceeds: " > "}[c.Claim]
	if sign == "" {
		return ""
	}
	text := fmt.Sprintf("%s%g", sign, 100*c.Limit)
	if c.Broken() {
		text += " BROKEN"
	}
	return text
}

// Print writes the tables as Markdown. A share has its 95 % interval in brackets and then what it is held against.
func Print(w io.Writer, tables []Table) error {
	for _, t := range tables {
		fmt.Fprintf(w, "## %s (`%s`)\n\n", t.Title, t.Name)
		for _, line := range t.Setup {
			fmt.Fprintf(w, "- %s\n", line)
		}
		fmt.Fprintln(w)
		printGrid(w, t.grid())
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
	}
	return nil
}

// grid has a line for each row of the table, or for each figure where there are more figures than rows.
func (t Table) grid() [][]string {
	columns := []string{""}
	for _, r := range t.Rows { // in the order of their first appearance; rows need not have all of them
		for _, c := range r.Cells {
			if !slices.Contains(columns, c.Column) {
				columns = append(columns, c.Column)
			}
		}
	}
	grid := [][]string{columns}
	for _, r := range t.Rows {
		line := make([]string, len(columns))
		line[0] = r.Label
		for _, c := range r.Cells {
			line[slices.Index(columns, c.Column)] = c.String()
		}
		grid = append(grid, line)
	}
	if len(columns) <= len(grid) {
		return grid
	}
	turned := make([][]string, len(columns))
	for i := range columns {
		for _, line := range grid {
			turned[i] = append(turned[i], line[i])
		}
	}
	return turned
}

func printGrid(w io.Writer, grid [][]string) {
	width := make([]int, len(grid[0]))
	for _, line := range grid {
		for i, text := range line {
			width[i] = max(width[i], len(text), 3)
		}
	}
	for i, line := range grid {
		for k, text := range line {
			fmt.Fprintf(w, "| %-*s ", width[k], text)
		}
		fmt.Fprintln(w, "|")
		if i == 0 {
			for k := range line {
				fmt.Fprintf(w, "|%s", strings.Repeat("-", width[k]+2))
			}
			fmt.Fprintln(w, "|")
		}
	}
}
