package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"ctrloop/internal/stats"
	"ctrloop/internal/stats/statcsv"
	"ctrloop/internal/stats/statplot"
	"ctrloop/serving/experiment/recorded"
)

// StatsPowerCmd is `ctrloop stats power`.
type StatsPowerCmd struct {
	File string `arg:"" optional:"" help:"CSV with a header: unit,impressions,clicks, of units like those of the test to come; '-' reads standard input."`
	statsSource
	statsAnswer
	statsSequence
	Share       float64   `default:"0.5" help:"Share of the units that the treatment will have."`
	Effects     []float64 `default:"0.01,0.02,0.05,0.1" help:"True relative lifts to plan for: 0.05 is +5 %."`
	Target      float64   `default:"0.01" help:"Relative half-width of the interval to plan for: 0.01 is +-1 %."`
	Power       float64   `default:"0.8" help:"Probability of finding a lift."`
	UnitsPerDay float64   `help:"New units a day in both arms together; without it, units are given and no days."`
}

// statsPower is the answer of `stats power --json`. Half-widths, effects and the minimum detectable effect are
// relative to the rate; figures that are not bounded are null.
type statsPower struct {
	Units         int64         `json:"units"`
	CTR           float64       `json:"ctr"`
	Sigma         float64       `json:"sigma"` // one unit's standard deviation of the difference, rate units
	HalfWidthNow  *float64      `json:"half_width_now"`
	MDENow        *float64      `json:"mde_now"`
	Target        float64       `json:"target_half_width"`
	UnitsToTarget *float64      `json:"units_to_target"`
	DaysToTarget  *float64      `json:"days_to_target"` // from now, with the units there are
	Power         float64       `json:"power"`
	Share         float64       `json:"share"`
	Alpha         float64       `json:"alpha"`
	NStar         float64       `json:"nstar"`
	Effects       []statsEffect `json:"effects"`
}

// statsEffect is what it takes to find one lift, from nothing.
type statsEffect struct {
	Effect float64  `json:"effect"`
	Units  *float64 `json:"units"`
	Days   *float64 `json:"days"`
}

// Run reads the file or the warehouse and answers.
func (c *StatsPowerCmd) Run(ctx context.Context, g *Globals, o *output) error {
	q := c.sequence()
	if err := q.Validate(); err != nil {
		return usageError{err}
	}
	if !(c.Share > 0 && c.Share < 1) || !(c.Power > 0 && c.Power < 1) || !(c.Target > 0) || !(c.UnitsPerDay >= 0 && c.UnitsPerDay <= 1e15) {
		return usageError{errors.New("power: share and power must lie in (0,1), target must be positive, units-per-day not negative, " +
			"at most 1e15")}
	}
	if slices.ContainsFunc(c.Effects, func(e float64) bool { return !(math.Abs(e) > 0) || math.IsInf(e, 0) }) {
		return usageError{fmt.Errorf("--effects %v: want relative lifts other than 0; 0.05 is +5 %%", c.Effects)}
	}
	data, name, err := fromFileOrWarehouse(
		ctx,
		g,
		o,
		c.File,
		&c.statsSource,
		statcsv.ReadUnits,
		func(x *recorded.Experiment) (stats.RatioSums, error) {
			q = c.over(x.Sequence(stats.DefaultSequence()))
			return x.Units(ctx)
		},
	)
	if err != nil {
		return err
	}
	sigma, rate := stats.SigmaFromBaseline(data, c.Share), data.Rate()
	if err := data.Validate(); err != nil {
		return fmt.Errorf("power of %s: %w", name, err)
	}
	if !(sigma > 0) {
		return fmt.Errorf("power of %s: %d units with %g clicks on %g impressions show no variation to plan with", name, data.N, data.M, data.D)
	}
	n := float64(data.N)
	toTarget := stats.UnitsForHalfWidth(q, sigma, c.Target*rate)
	if math.IsInf(toTarget, 1) {
		return usageError{fmt.Errorf("--target %g: more than 1e18 units would be needed; that cannot be planned", c.Target)}
	}
	days := func(units float64) *float64 {
		if c.UnitsPerDay <= 0 {
			return nil
		}
		return finite(max(0, units) / c.UnitsPerDay)
	}
	out := statsPower{
		Units: data.N, CTR: rate, Sigma: sigma, Share: c.Share, Alpha: q.Alpha, NStar: q.NStar, Target: c.Target, Power: c.Power,
		HalfWidthNow: finite(q.HalfWidth(n, sigma/math.Sqrt(n)) / rate), MDENow: finite(stats.MDE(q, n, sigma, c.Power) / rate),
		UnitsToTarget: finite(toTarget), DaysToTarget: days(toTarget - n),
	}
	for _, e := range c.Effects {
		units := stats.UnitsToDetect(q, sigma, e*rate, c.Power)
		if math.IsInf(units, 1) {
			return usageError{fmt.Errorf("--effects %g: more than 1e18 units would be needed to find it; that cannot be planned", e)}
		}
		out.Effects = append(out.Effects, statsEffect{e, finite(units), days(units)})
	}
	return o.answerReport(c.statsAnswer, out, statsReport{
		Title: "Plan from " + name,
		Text:  func(w io.Writer) { printPower(w, out) },
		Plots: powerPlots(out, q),
	})
}

func printPower(w io.Writer, out statsPower) {
	fmt.Fprintf(w, "%d units, CTR %.4f %%; treatment has %g %%\n", out.Units, 100*out.CTR, 100*out.Share)
	fmt.Fprintf(
		w,
		"now        a test of these units would know the lift to +-%.2f %%, and find one of %.2f %% with probability %g\n",
		100*value(out.HalfWidthNow),
		100*value(out.MDENow),
		out.Power,
	)
	fmt.Fprintf(w, "target     +-%g %%: %.0f units%s\n", 100*out.Target, value(out.UnitsToTarget), inDays(out.DaysToTarget, "more"))
	for _, e := range out.Effects {
		fmt.Fprintf(w, "find %+5.1f %%  %12.0f units%s\n", 100*e.Effect, value(e.Units), inDays(e.Days, "in all"))
	}
	fmt.Fprintf(w, "at that size the lift is found with probability %g; as every look counts, it is often found earlier\n", out.Power)
}

func inDays(days *float64, which string) string {
	if days == nil {
		return ""
	}
	return fmt.Sprintf(", about %.1f days %s", *days, which)
}

func value(v *float64) float64 {
	if v == nil {
		return math.Inf(1)
	}
	return *v
}

func powerPlots(out statsPower, q stats.Sequence) []statsPlot {
	most, least := float64(out.Units), math.Max(2, float64(out.Units)/50)
	for _, u := range append([]statsEffect{{Units: out.UnitsToTarget}}, out.Effects...) {
		if n := value(u.Units); !math.IsInf(n, 0) {
			most, least = max(most, 2*n), min(least, max(2, n/50))
		}
	}
	xs := make([]float64, 100)
	for i := range xs {
		xs[i] = least * math.Pow(most/least, float64(i)/float64(len(xs)-1))
	}
	units := func(v float64) string { return fmt.Sprintf("%.0f", v) }
	c := statplot.Curves{
		Title:   "Probability of finding a lift",
		XAxis:   "units of both arms",
		YAxis:   "power at that size",
		Level:   out.Power,
		LogX:    true,
		XFormat: units,
		YFormat: func(v float64) string { return fmt.Sprintf("%.0f%%", 100*v) },
	}
	for _, e := range out.Effects[:min(4, len(out.Effects))] {
		k := statplot.Curve{Label: fmt.Sprintf("%+g %%", 100*e.Effect), X: xs}
		for _, x := range xs {
			k.Y = append(k.Y, stats.Power(q, x, out.Sigma, e.Effect*out.CTR))
		}
		c.Curves = append(c.Curves, k)
	}
	w := statplot.Curves{
		Title:   "Half-width of the interval",
		XAxis:   "units of both arms",
		YAxis:   "relative",
		Level:   out.Target,
		LogX:    true,
		XFormat: units,
		YFormat: percentShort,
	}
	k := statplot.Curve{Label: "half-width"}
	for _, x := range xs {
		if y := q.HalfWidth(x, out.Sigma/math.Sqrt(x)) / out.CTR; y < 20*out.Target || y < 0.5 { // wider ones would flatten the rest
			k.X, k.Y = append(k.X, x), append(k.Y, y)
		}
	}
	w.Curves = append(w.Curves, k)
	return []statsPlot{
		{"power", "power over the number of units", c.SVG()},
		{"width", "half-width of the interval over the number of units", w.SVG()},
	}
}
