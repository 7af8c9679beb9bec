package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"

	"ctrloop/internal/stats"
	"ctrloop/internal/stats/statcsv"
	"ctrloop/internal/stats/statplot"
)

// statsReport is a result for people: the text that the terminal shows, and plots.
type statsReport struct {
	Title string
	Text  func(io.Writer)
	Plots []statsPlot
}

// statsPlot is one plot of a report.
type statsPlot struct {
	Name string // part of the file's name
	Alt  string
	SVG  string
}

// answerReport is answer with a report where asked.
func (o *output) answerReport(to statsAnswer, v any, r statsReport) error {
	if to.Report != "" {
		if err := r.write(to.Report); err != nil {
			return err
		}
	}
	return o.answer(to.JSON, v, r.Text)
}

// write writes the report to path and its plots beside it, as NAME-PLOT.svg.
func (r statsReport) write(path string) error {
	if filepath.Ext(path) != ".md" {
		return usageError{fmt.Errorf("--report %s: want a file that ends in .md; its plots go beside it", path)}
	}
	var text strings.Builder
	fmt.Fprintf(&text, "# %s\n\n", r.Title)
	base := strings.TrimSuffix(filepath.Base(path), ".md")
	var errs []error
	for _, p := range r.Plots {
		file := base + "-" + p.Name + ".svg"
		fmt.Fprintf(&text, "![%s](<%s>)\n\n", p.Alt, file)
		errs = append(
			errs,
			os.WriteFile(filepath.Join(filepath.Dir(path), file), []byte(p.SVG), 0o644),
		) //nolint:gosec // a report is for others to read
	}
	text.WriteString("```text\n")
	r.Text(&text)
	text.WriteString("```\n\nIntervals and p-values are explained in ctrloop's docs/statistics.md.\n")
	errs = append(errs, os.WriteFile(path, []byte(text.String()), 0o644)) //nolint:gosec // a report is for others to read
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

func liftPlots(out statsLift, l stats.Lift, adjusted stats.AdjustedLift, categories []stats.CategoryLift) []statsPlot {
	row := func(label string, l stats.Lift) statplot.Row {
		return statplot.Row{
			Label:  label,
			Value:  l.Relative,
			Low:    l.RelativeI.Low,
			High:   l.RelativeI.High,
			Strong: l.RelativeI.Low > 0 || l.RelativeI.High < 0,
		}
	}
	overall := statplot.Forest{
		Title:  "Relative lift",
		Axis:   fmt.Sprintf("treatment over control; intervals that hold at every look, %g %%", 100*(1-out.Alpha)),
		Format: percentShort,
	}
	overall.Rows = append(overall.Rows, row("lift", l))
	if out.Adjusted != nil {
		overall.Rows = append(overall.Rows, row("adjusted (CUPED)", adjusted.Lift))
	}
	plots := []statsPlot{{"lift", "relative lift with its interval", overall.SVG()}}
	if len(categories) == 0 {
		return plots
	}
	f := statplot.Forest{
		Title:  "Relative lift by category",
		Axis:   fmt.Sprintf("blue: reported at a false-discovery rate of %g, with its selected interval", out.FDR),
		Format: percentShort,
	}
	for _, k := range categories {
		r := row(k.Name, k.Lift)
		if r.Strong = k.Discovered; k.Discovered {
			r.Low, r.High = k.SelectedRelative.Low, k.SelectedRelative.High
		}
		f.Rows = append(f.Rows, r)
	}
	return append(plots, statsPlot{"categories", "relative lift of each category", f.SVG()})
}

func srmPlots(data statcsv.Phases) []statsPlot {
	f := statplot.Forest{
		Title:  "Observed less planned share",
		Axis:   "points; Wilson interval of one look, for show: the decision is the Bayes factor's",
		Format: percentShort,
	}
	for k, p := range data.Phases {
		n := int64(0)
		for _, c := range p.Counts {
			n += c
		}
		for i, a := range data.Arms {
			iv := stats.Wilson(p.Counts[i], n, 0.05)
			plan := p.Shares[i]
			f.Rows = append(f.Rows, statplot.Row{
				Label: strings.TrimSpace(data.Names[k] + " " + a), Value: float64(p.Counts[i])/float64(max(1, n)) - plan,
				Low: iv.Low - plan, High: iv.High - plan, Strong: iv.Low > plan || iv.High < plan,
			})
		}
	}
	return []statsPlot{{"shares", "observed less planned share of each arm", f.SVG()}}
}

func opePlots(out statsOPE) []statsPlot {
	f := statplot.Forest{
		Title:     "Value of the policy by estimator",
		Format:    func(v float64) string { return fmt.Sprintf("%.5f", v) },
		Axis:      fmt.Sprintf("rewards a decision; effective sample size %.0f of %d rows", out.ESS, out.Rows),
		Reference: math.NaN(),
	}
	for _, name := range stats.Estimators() {
		e := out.Estimators[name]
		f.Rows = append(f.Rows, statplot.Row{Label: string(name), Value: e.Value, Low: e.Low, High: e.High})
	}
	return []statsPlot{{"estimators", "value by each estimator with its interval", f.SVG()}}
}

func percentShort(v float64) string {
	switch {
	case math.IsInf(v, 0):
		return "no bound"
	case v == 0:
		return "0%"
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%+.0f%%", 100*v)
	case math.Abs(v) < 0.1:
		return fmt.Sprintf("%+.2f%%", 100*v)
	}
	return fmt.Sprintf("%+.1f%%", 100*v)
}
