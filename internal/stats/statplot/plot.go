// Package statplot draws the two plots that reports of statistics need as SVG text: intervals beside each other, and
// curves over a quantity. Colours come from the page's own where it has a dark background.
package statplot

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Row is one interval of a forest plot. A bound that is infinite or beyond the axis is drawn as an arrow.
type Row struct {
	Label            string
	Value, Low, High float64
	Strong           bool // excludes the reference: drawn in the strong colour
}

// Forest is a plot of intervals, one below the other.
type Forest struct {
	Title     string
	Axis      string                 // what the values are, with their unit
	Format    func(v float64) string // of numbers; %.4g where nil
	Reference float64                // of the vertical line; none where NaN
	Rows      []Row
}

const (
	width      = 760.0 // of curves
	axisWidth  = 380.0 // of a forest, between the labels and the numbers
	rowHeight  = 26.0
	runeWidth  = 7.2 // of labels and numbers, on the safe side
	leastText  = 28  // runes of the numbers at the right that there is always room for
	maxLabel   = 40  // runes; longer ones are cut
	leastLabel = 20  // runes that there is always room for
)

const style = `<style>
text{font:13px system-ui,sans-serif;fill:#24292f}.title{font-weight:600;font-size:15px}.tick{font-size:11px;fill:#57606a}
.grid{stroke:#d0d7de;stroke-width:1}.ref{stroke:#57606a;stroke-dasharray:4 3}.iv{stroke:#57606a;stroke-width:2;fill:#57606a}` +
	`.strong{stroke:#0969da;fill:#0969da}
.c0{stroke:#0969da;fill:#0969da}.c1{stroke:#bc4c00;fill:#bc4c00}.c2{stroke:#1a7f37;fill:#1a7f37}.c3{stroke:#8250df;fill:#8250df}` +
	`.line{fill:none;stroke-width:2}.back{fill:#fff}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.tick{fill:#9198a1}.grid{stroke:#30363d}` +
	`.ref{stroke:#9198a1}.iv{stroke:#9198a1;fill:#9198a1}` +
	`.strong,.c0{stroke:#4493f8;fill:#4493f8}.line{fill:none}.back{fill:#0d1117}}
</style>`

// SVG draws the plot.
func (f Forest) SVG() string {
	format := f.Format
	if format == nil {
		format = short
	}
	lo, hi := f.scale()
	label, text := leastLabel, leastText
	for _, r := range f.Rows {
		label = max(label, utf8.RuneCountInString(clip(r.Label, maxLabel)))
		text = max(text, utf8.RuneCountInString(interval(r, format)))
	}
	left := 16 + runeWidth*float64(label)
	right := left + axisWidth
	width := right + 16 + runeWidth*float64(text)
	x := func(v float64) float64 { return left + (right-left)*(v-lo)/(hi-lo) }
	height := 46 + rowHeight*float64(len(f.Rows)) + 44
	bottom := height - 40
	var b strings.Builder
	begin(&b, f.Title, width, height)
	for _, v := range ticks(lo, hi, 5) {
		fmt.Fprintf(
			&b,
			`<line class="grid" x1="%.1f" x2="%.1f" y1="36" y2="%.1f"/><text class="tick" text-anchor="middle" x="%.1f" y="%.1f">%s</text>`+"\n",
			x(v),
			x(v),
			bottom,
			x(v),
			bottom+15,
			html.EscapeString(format(v)),
		)
	}
	if f.Reference >= lo && f.Reference <= hi {
		fmt.Fprintf(&b, `<line class="ref" x1="%.1f" x2="%.1f" y1="36" y2="%.1f"/>`+"\n", x(f.Reference), x(f.Reference), bottom)
	}
	for i, r := range f.Rows {
		y := 46 + rowHeight*(float64(i)+0.5)
		class := "iv"
		if r.Strong {
			class = "iv strong"
		}
		fmt.Fprintf(&b, `<text x="8" y="%.1f">%s</text>`, y+4, html.EscapeString(clip(r.Label, maxLabel)))
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f">%s</text>`, right+12, y+4, html.EscapeString(interval(r, format)))
		if !math.IsNaN(r.Low) && !math.IsNaN(r.High) && r.High >= lo && r.Low <= hi {
			x1, x2 := x(max(r.Low, lo)), x(min(r.High, hi))
			fmt.Fprintf(&b, `<line class="%s" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`, class, x1, x2, y, y)
			for _, end := range []struct {
				x, way float64
				cut    bool
			}{{x1, 1, r.Low < lo}, {x2, -1, r.High > hi}} {
				if end.cut {
					fmt.Fprintf(&b, `<path class="%s" d="M%.1f %.1fl%g -5v10z"/>`, class, end.x, y, 8*end.way)
				} else {
					fmt.Fprintf(&b, `<line class="%s" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`, class, end.x, end.x, y-5, y+5)
				}
			}
		}
		if r.Value >= lo && r.Value <= hi {
			fmt.Fprintf(&b, `<circle class="%s" cx="%.1f" cy="%.1f" r="4"/>`, class, x(r.Value), y)
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(
		&b,
		`<text class="tick" text-anchor="middle" x="%.1f" y="%.1f">%s</text></svg>`+"\n",
		(left+right)/2,
		height-6,
		html.EscapeString(f.Axis),
	)
	return b.String()
}

// scale covers the values and the reference, and of the bounds what is not farther than three times their spread.
func (f Forest) scale() (lo, hi float64) {
	lo, hi = math.Inf(1), math.Inf(-1)
	take := func(v float64) {
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			lo, hi = min(lo, v), max(hi, v)
		}
	}
	take(f.Reference)
	narrow := math.Inf(1)
	for _, r := range f.Rows {
		take(r.Value)
		if w := r.High - r.Low; w > 0 {
			narrow = min(narrow, w)
		}
	}
	reach := 1.5 * max(hi-lo, narrow)
	if math.IsInf(reach, 0) || math.IsNaN(reach) {
		reach = 1
	}
	minimum, maximum := lo-reach, hi+reach
	for _, r := range f.Rows {
		if !math.IsNaN(r.Low) && !math.IsNaN(r.High) {
			take(max(r.Low, minimum))
			take(min(r.High, maximum))
		}
	}
	return pad(lo, hi)
}

// Curve is one line of a plot of curves.
type Curve struct {
	Label string
	X, Y  []float64 // of the same length; points that are not finite are left out
}

// Curves is a plot of lines over one quantity, up to four of them.
type Curves struct {
	Title, XAxis, YAxis string
	XFormat, YFormat    func(v float64) string // %.4g where nil
	Curves              []Curve
	Level               float64 // of a horizontal line; none where NaN
	LogX                bool    // X over a logarithmic axis: all positive
}

// SVG draws the plot.
func (c Curves) SVG() string {
	if c.XFormat == nil {
		c.XFormat = short
	}
	if c.YFormat == nil {
		c.YFormat = short
	}
	const height, left, right, top, bottom = 360.0, 80.0, width - 150, 40.0, 310.0
	xlo, xhi, ylo, yhi := math.Inf(1), math.Inf(-1), 0.0, math.Inf(-1)
	for _, k := range c.Curves {
		for i, x := range k.X {
			if finite(x) && finite(k.Y[i]) {
				xlo, xhi, ylo, yhi = min(xlo, x), max(xhi, x), min(ylo, k.Y[i]), max(yhi, k.Y[i])
			}
		}
	}
	if finite(c.Level) {
		yhi = max(yhi, c.Level)
	}
	if math.IsInf(xlo, 0) {
		xlo, xhi, yhi = 0, 1, 1
	}
	if !(xhi > xlo) {
		xhi = xlo + 1
	}
	if !(yhi > ylo) {
		yhi = ylo + 1
	}
	yhi *= 1.04
	px := func(v float64) float64 { return left + (right-left)*(v-xlo)/(xhi-xlo) }
	xticks := ticks(xlo, xhi, 6)
	if c.LogX && xlo > 0 {
		px = func(v float64) float64 { return left + (right-left)*math.Log(v/xlo)/math.Log(xhi/xlo) }
		xticks = decades(xlo, xhi)
	}
	py := func(v float64) float64 { return bottom - (bottom-top)*(v-ylo)/(yhi-ylo) }
	var b strings.Builder
	begin(&b, c.Title, width, height)
	for _, v := range xticks {
		fmt.Fprintf(
			&b,
			`<line class="grid" x1="%.1f" x2="%.1f" y1="%g" y2="%g"/><text class="tick" text-anchor="middle" x="%.1f" y="%g">%s</text>`+"\n",
			px(v),
			px(v),
			top,
			bottom,
			px(v),
			bottom+16,
			html.EscapeString(c.XFormat(v)),
		)
	}
	for _, v := range ticks(ylo, yhi, 5) {
		fmt.Fprintf(
			&b,
			`<line class="grid" x1="%g" x2="%g" y1="%.1f" y2="%.1f"/><text class="tick" text-anchor="end" x="%g" y="%.1f">%s</text>`+"\n",
			left,
			right,
			py(v),
			py(v),
			left-6,
			py(v)+4,
			html.EscapeString(c.YFormat(v)),
		)
	}
	if finite(c.Level) {
		fmt.Fprintf(&b, `<line class="ref" x1="%g" x2="%g" y1="%.1f" y2="%.1f"/>`+"\n", left, right, py(c.Level), py(c.Level))
	}
	for n, k := range c.Curves {
		var points []string
		for i, x := range k.X {
			if finite(x) && finite(k.Y[i]) {
				points = append(points, fmt.Sprintf("%.1f,%.1f", px(x), py(k.Y[i])))
			}
		}
		fmt.Fprintf(&b, `<polyline class="c%d line" points="%s"/>`, n%4, strings.Join(points, " "))
		y := top + 10 + 20*float64(n)
		fmt.Fprintf(
			&b,
			`<line class="c%d line" x1="%g" x2="%g" y1="%g" y2="%g"/><text x="%g" y="%g">%s</text>`+"\n",
			n%4,
			right+10,
			right+28,
			y,
			y,
			right+34,
			y+4,
			html.EscapeString(clip(k.Label, 16)),
		)
	}
	fmt.Fprintf(&b, `<text class="tick" text-anchor="middle" x="%g" y="%g">%s</text>`, (left+right)/2, height-12, html.EscapeString(c.XAxis))
	fmt.Fprintf(
		&b,
		`<text class="tick" text-anchor="middle" transform="translate(16 %g) rotate(-90)">%s</text></svg>`+"\n",
		(top+bottom)/2,
		html.EscapeString(c.YAxis),
	)
	return b.String()
}

func begin(b *strings.Builder, title string, width, height float64) {
	fmt.Fprintf(
		b,
		`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" width="%g" height="%g" role="img" aria-label="%s">`+"\n%s\n",
		width,
		height,
		width,
		height,
		html.EscapeString(title),
		style,
	)
	fmt.Fprintf(
		b,
		`<rect class="back" width="%g" height="%g"/><text class="title" x="8" y="22">%s</text>`+"\n",
		width,
		height,
		html.EscapeString(title),
	)
}

// ticks are round numbers inside [lo, hi], about n of them.
func ticks(lo, hi float64, n int) []float64 {
	raw := (hi - lo) / float64(n)
	unit := math.Pow(10, math.Floor(math.Log10(raw)))
	step := 10 * unit
	for _, m := range []float64{1, 2, 5} {
		if m*unit >= raw {
			step = m * unit
			break
		}
	}
	var out []float64
	for i := math.Ceil(lo/step - 1e-9); i*step <= hi+step*1e-9; i++ {
		out = append(out, i*step+0) // + 0: no negative zero
	}
	return out
}

// decades are 1, 3 and 10 times powers of ten inside [lo, hi].
func decades(lo, hi float64) (out []float64) {
	for p := math.Floor(math.Log10(lo)); p <= math.Log10(hi); p++ {
		for _, m := range []float64{1, 3} {
			if v := m * math.Pow(10, p); v >= lo && v <= hi {
				out = append(out, v)
			}
		}
	}
	return out
}

func pad(lo, hi float64) (float64, float64) {
	if math.IsInf(lo, 0) || math.IsInf(hi, 0) {
		return 0, 1
	}
	if !(hi > lo) {
		d := max(math.Abs(lo), 1e-9)
		return lo - d, hi + d
	}
	d := 0.04 * (hi - lo)
	return lo - d, hi + d
}

func interval(r Row, format func(float64) string) string {
	if math.IsNaN(r.Value) {
		return "-"
	}
	return format(r.Value) + " (" + format(r.Low) + " to " + format(r.High) + ")"
}

func short(v float64) string {
	switch {
	case math.IsInf(v, 1):
		return "no bound"
	case math.IsInf(v, -1):
		return "no bound"
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}

func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
