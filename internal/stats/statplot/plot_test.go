package statplot

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// parse fails on what is no well-formed XML, and on coordinates that are not numbers.
func parse(t *testing.T, svg string) (elements map[string]int) {
	t.Helper()
	elements = map[string]int{}
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return elements
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
		if e, ok := token.(xml.StartElement); ok {
			elements[e.Name.Local]++
			for _, a := range e.Attr {
				if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
					t.Errorf("%s %s=%q", e.Name.Local, a.Name.Local, a.Value)
				}
			}
		}
	}
}

func TestForestDrawsEveryRow(t *testing.T) {
	f := Forest{Title: `a < b & "c"`, Axis: "relative lift", Rows: []Row{
		{Label: "all", Value: 0.05, Low: 0.01, High: 0.09, Strong: true},
		{Label: "no upper bound", Value: 0.02, Low: -1, High: math.Inf(1)},
		{Label: "nothing known", Value: math.NaN(), Low: math.NaN(), High: math.NaN()},
	}}
	svg := f.SVG()
	n := parse(t, svg)
	if n["circle"] != 2 || n["path"] != 2 {
		t.Errorf("%d values and %d arrows, want 2 of each (both ends of the row without bounds)", n["circle"], n["path"])
	}
	if !strings.Contains(svg, "no upper bound") || strings.Contains(svg, `a < b`) {
		t.Error("labels are missing or not escaped")
	}
	long := "electronics/phones and communication"
	if wide := (Forest{Rows: []Row{{Label: long, Value: 1, Low: 0, High: 2}}}).SVG(); !strings.Contains(wide, long) {
		t.Error("a label of 36 letters was cut")
	}
	if cut := (Forest{Rows: []Row{{Label: strings.Repeat("ä", 100), Value: 1, Low: 0, High: 2}}}).SVG(); !strings.Contains(
		cut,
		strings.Repeat("ä", 39)+"…<",
	) {
		t.Error("a label of 100 letters was not cut")
	}
	room := func(rows ...Row) float64 {
		f := Forest{Rows: rows, Format: func(v float64) string { return strconv.FormatFloat(v, 'f', 3, 64) }}
		_, after, _ := strings.Cut(f.SVG(), ` width="`)
		w, err := strconv.ParseFloat(after[:strings.Index(after, `"`)], 64)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	if narrow, wide := room(Row{Value: 1, Low: 0, High: 2}), room(Row{Value: 1e9, Low: 0, High: 2e12}); wide <= narrow {
		t.Errorf("long numbers have no more room (%g) than short ones (%g)", wide, narrow)
	}
	parse(t, Forest{Reference: math.NaN()}.SVG())
	parse(t, Forest{Rows: []Row{{Value: 1, Low: 1, High: 1}}}.SVG())
}

func TestCurvesLeaveOutWhatIsNotFinite(t *testing.T) {
	c := Curves{
		Title:  "t",
		Level:  0.5,
		Curves: []Curve{{Label: "one", X: []float64{1, 2, 3}, Y: []float64{math.Inf(1), 2, 1}}, {Label: "two", X: []float64{1}, Y: []float64{1}}},
	}
	if n := parse(t, c.SVG()); n["polyline"] != 2 {
		t.Errorf("%d lines, want 2", n["polyline"])
	}
	parse(t, Curves{Level: math.NaN()}.SVG())
	c.LogX = true
	parse(t, c.SVG())
	if got := decades(2, 150); !slices.Equal(got, []float64{3, 10, 30, 100}) {
		t.Errorf("ticks %v", got)
	}
}

func TestTicksAreRoundAndInside(t *testing.T) {
	got := ticks(-0.031, 0.052, 5)
	if len(got) < 3 || got[0] < -0.031 || got[len(got)-1] > 0.052 {
		t.Errorf("ticks %v", got)
	}
	for _, v := range got {
		if r := v / 0.02; math.Abs(r-math.Round(r)) > 1e-9 {
			t.Errorf("%g is not round", v)
		}
	}
}
