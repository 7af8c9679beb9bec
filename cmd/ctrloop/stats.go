package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"
	"unicode/utf8"

	"ctrloop/internal/stats"
	"ctrloop/internal/stats/statcsv"
	"ctrloop/serving/experiment/recorded"
)

// StatsCmd is `ctrloop stats`: the statistics on a file or on what an instance's warehouse has.
type StatsCmd struct {
	Lift  StatsLiftCmd  `cmd:"" help:"Click-through lift of treatment over control with an always-valid interval. CSV: unit,arm,impressions,clicks[,category][,pre_impressions,pre_clicks]."`
	SRM   StatsSRMCmd   `cmd:"" name:"srm" help:"Sequential sample-ratio test, over a ramp too. CSV: arm,count[,share][,phase]."`
	OPE   StatsOPECmd   `cmd:"" name:"ope" help:"Off-policy value of a policy on a logged bandit data set. CSV: item_id,position,click,propensity_score."`
	Power StatsPowerCmd `cmd:"" help:"How many units and days a test needs. CSV: unit,impressions,clicks."`
}

// statsAnswer are the options about where a result goes.
type statsAnswer struct {
	JSON   string `name:"json" placeholder:"FILE" help:"Write the result as JSON to FILE ('-': standard output)."`
	Report string `placeholder:"FILE.md" help:"Write a report in Markdown to FILE.md, its plots as SVG files beside it."`
}

// statsSequence are the options of the confidence sequence.
type statsSequence struct {
	Alpha *float64 `placeholder:"0.05" help:"Two-sided error over all looks. Default: the experiment's with --experiment, else 0.05."`
	NStar *float64 `name:"n-star" aliases:"nstar" placeholder:"5000" help:"Units at which the interval is tightest. Default: the experiment's with --experiment, else 5000."`
}

// sequence is what the options say, with the defaults of a file.
func (o statsSequence) sequence() stats.Sequence { return o.over(stats.DefaultSequence()) }

// over is q where the options say nothing else.
func (o statsSequence) over(q stats.Sequence) stats.Sequence {
	if o.Alpha != nil {
		q.Alpha = *o.Alpha
	}
	if o.NStar != nil {
		q.NStar = *o.NStar
	}
	return q
}

// StatsLiftCmd is `ctrloop stats lift`.
type StatsLiftCmd struct {
	File string `arg:"" optional:"" help:"CSV with a header: unit,arm,impressions,clicks; arms control and treatment; '-' reads standard input."`
	statsSource
	statsAnswer
	statsSequence
	Exact float64       `placeholder:"IMPRESSIONS" help:"Of a file: an exact interval too, that holds from the first unit on, where no unit can have more than IMPRESSIONS. The bound must be known before the data; rows must be in the order in which units came."`
	FDR   *float64      `name:"fdr" placeholder:"RATE" help:"False-discovery rate over the categories, where there are any. Default: alpha, as ctrloop experiment show has it."`
	Pre   time.Duration `default:"336h" help:"With --experiment: how long before the test a unit's impressions are its covariate; 0 uses none."`
}

// statsArm is one arm of `stats lift --json`.
type statsArm struct {
	Units       int64   `json:"units"`
	Impressions int64   `json:"impressions"`
	Clicks      int64   `json:"clicks"`
	CTR         float64 `json:"ctr"`
}

// statsDifference is a lift with its intervals. Rates are fractions of 1. What is null has its reason in null_because,
// under its own name.
type statsDifference struct {
	LiftAbsolute *float64          `json:"lift_absolute"`
	Low          *float64          `json:"low"`
	High         *float64          `json:"high"`
	SE           *float64          `json:"se"`
	PAlwaysValid *float64          `json:"p_always_valid"`
	LiftRelative *float64          `json:"lift_relative"`
	RelativeLow  *float64          `json:"relative_low"`
	RelativeHigh *float64          `json:"relative_high"`
	NullBecause  map[string]string `json:"null_because,omitempty"`
}

func difference(l stats.Lift) statsDifference {
	d := statsDifference{LiftAbsolute: finite(l.Absolute), LiftRelative: finite(l.Relative), NullBecause: l.Missing()}
	if l.Unknown == "" {
		d.Low, d.High, d.SE, d.PAlwaysValid = finite(l.Interval.Low), finite(l.Interval.High), finite(l.SE), finite(l.P)
		d.RelativeLow, d.RelativeHigh = finite(l.RelativeI.Low), finite(l.RelativeI.High)
	}
	return d
}

// statsLift is the answer of `stats lift --json`.
type statsLift struct {
	Control   statsArm `json:"control"`
	Treatment statsArm `json:"treatment"`
	statsDifference
	Alpha       float64         `json:"alpha"`
	NStar       float64         `json:"nstar"`
	UnitsInBoth int             `json:"units_in_both_arms"`
	Exact       *statsExact     `json:"exact,omitempty"`
	Adjusted    *statsAdjusted  `json:"adjusted,omitempty"`
	Within      *statsWithin    `json:"within_categories,omitempty"`
	FDR         float64         `json:"fdr,omitempty"` // of the categories
	Categories  []statsCategory `json:"categories,omitempty"`
}

// statsExact is an interval of the difference that holds at every look from the first unit on.
type statsExact struct {
	Low  float64 `json:"low"`
	High float64 `json:"high"`
	Most float64 `json:"most_impressions"` // that a unit can have, by the caller
}

// statsAdjusted is the lift with the covariate from before the test (ratio CUPED).
type statsAdjusted struct {
	statsDifference
	Theta     float64 `json:"theta"`
	Reduction float64 `json:"variance_reduction"`
	Refused   string  `json:"refused,omitempty"` // why the covariate was not used: the figures are the plain ones
}

// statsWithin is the lift within categories, put together, beside the pooled one. Its absolute figures are of weighted
// impressions and mean nothing by themselves.
type statsWithin struct {
	LiftRelative *float64          `json:"lift_relative"`
	RelativeLow  *float64          `json:"relative_low"`
	RelativeHigh *float64          `json:"relative_high"`
	PAlwaysValid *float64          `json:"p_always_valid"`
	NullBecause  map[string]string `json:"null_because,omitempty"`
	Trap         string            `json:"trap,omitempty"` // why the pooled lift must not be read on its own
}

// statsCategory is one category's lift. The selected interval is that of a reported category among so many (e-BY),
// null for the others.
type statsCategory struct {
	Category     string   `json:"category"`
	Units        float64  `json:"units"`
	LiftRelative *float64 `json:"lift_relative"`
	RelativeLow  *float64 `json:"relative_low"`
	RelativeHigh *float64 `json:"relative_high"`
	PAlwaysValid *float64 `json:"p_always_valid"`
	Q            float64  `json:"q"`
	Discovered   bool     `json:"discovered"`
	SelectedLow  *float64 `json:"selected_relative_low"`
	SelectedHigh *float64 `json:"selected_relative_high"`

	NullBecause map[string]string `json:"null_because,omitempty"`
}

// Run reads the file or the warehouse and answers.
func (c *StatsLiftCmd) Run(ctx context.Context, g *Globals, o *output) error {
	q := c.sequence()
	if err := q.Validate(); err != nil {
		return usageError{err}
	}
	if c.FDR != nil && !(*c.FDR > 0 && *c.FDR < 1) {
		return usageError{fmt.Errorf("--fdr %g: want a rate in (0,1)", *c.FDR)}
	}
	if c.Exact != 0 && (!(c.Exact >= 1 && c.Exact <= 1e9) || c.Experiment != "") {
		return usageError{fmt.Errorf("--exact %g: want the largest number of impressions that a unit can have, 1 to 1e9, and a file", c.Exact)}
	}
	if c.Pre < 0 {
		return usageError{fmt.Errorf("--pre %v: want a time of 0 or more", c.Pre)}
	}
	data, name, err := fromFileOrWarehouse(
		ctx,
		g,
		o,
		c.File,
		&c.statsSource,
		statcsv.ReadLift,
		func(x *recorded.Experiment) (statcsv.LiftData, error) {
			q = c.over(x.Sequence(stats.DefaultSequence()))
			return x.Lift(ctx, c.Pre)
		},
	)
	if err != nil {
		return err
	}
	fdr := q.Alpha
	if c.FDR != nil {
		fdr = *c.FDR
	}
	l, err := stats.CompareAdjusted(data.Control, data.Treatment, q)
	if err != nil {
		return fmt.Errorf("lift of %s: %w", name, err)
	}
	plain, err := stats.Compare(data.Control.RatioSums, data.Treatment.RatioSums, q)
	if err != nil {
		return fmt.Errorf("lift of %s: %w", name, err)
	}
	categories, err := stats.CompareCategories(data.Categories, q, fdr)
	if err != nil {
		return fmt.Errorf("categories of %s: %w", name, err)
	}
	out := liftAnswer(data, plain, l, categories)
	if c.Exact > 0 {
		iv, err := stats.ExactLift(data.Units[0], data.Units[1], c.Exact, q.Alpha)
		if err != nil {
			return fmt.Errorf("lift of %s: %w", name, err)
		}
		out.Exact = &statsExact{iv.Low, iv.High, c.Exact}
	}
	if len(data.Categories) > 1 {
		if out.Within, err = within(data.Categories, plain, q); err != nil {
			return fmt.Errorf("lift within the categories of %s: %w", name, err)
		}
	}
	out.Alpha, out.NStar = q.Alpha, q.NStar
	if len(categories) > 0 {
		out.FDR = fdr
	}
	if data.InBothArms > 0 {
		fmt.Fprintf(
			o.stderr,
			"warning: %d units have rows in both arms; they count in each, and the arms are then not independent\n",
			data.InBothArms,
		)
	}
	return o.answerReport(c.statsAnswer, out, statsReport{
		Title: "Lift of " + name,
		Text:  func(w io.Writer) { printLift(w, out, plain, l, categories) },
		Plots: liftPlots(out, plain, l, categories),
	})
}

func liftAnswer(data statcsv.LiftData, l stats.Lift, adjusted stats.AdjustedLift, categories []stats.CategoryLift) statsLift {
	arm := func(s stats.Sums) statsArm { return statsArm{s.N, int64(s.D), int64(s.M), s.Rate()} }
	out := statsLift{
		Control: arm(data.Control), Treatment: arm(data.Treatment), statsDifference: difference(l),
		UnitsInBoth: data.InBothArms,
	}
	if data.HasPre {
		out.Adjusted = &statsAdjusted{difference(adjusted.Lift), adjusted.Theta, adjusted.Reduction, adjusted.Refused}
	}
	for _, k := range categories {
		d := difference(k.Lift)
		row := statsCategory{
			Category: k.Name, Units: k.Units, LiftRelative: d.LiftRelative, RelativeLow: d.RelativeLow, RelativeHigh: d.RelativeHigh,
			PAlwaysValid: d.PAlwaysValid, Q: k.Q, Discovered: k.Discovered, NullBecause: d.NullBecause,
		}
		if k.Discovered {
			row.SelectedLow, row.SelectedHigh = finite(k.SelectedRelative.Low), finite(k.SelectedRelative.High)
		}
		out.Categories = append(out.Categories, row)
	}
	return out
}

// within compares the pooled lift with the one within categories.
func within(categories []stats.Category, pooled stats.Lift, q stats.Sequence) (*statsWithin, error) {
	l, err := stats.CompareAcross(categories, q)
	if errors.Is(err, stats.ErrNoStrata) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d := difference(l)
	out := &statsWithin{LiftRelative: d.LiftRelative, RelativeLow: d.RelativeLow, RelativeHigh: d.RelativeHigh, PAlwaysValid: d.PAlwaysValid,
		NullBecause: d.NullBecause}
	if stats.Trap(pooled, l) {
		out.Trap = "the arms met the categories in different shares, and the pooled lift contradicts the lift within them (Simpson's paradox): " +
			"do not read the pooled one, and find out why the shares differ"
	}
	return out, nil
}

func printLift(w io.Writer, out statsLift, l stats.Lift, adjusted stats.AdjustedLift, categories []stats.CategoryLift) {
	for _, a := range []struct {
		name string
		statsArm
	}{{"control", out.Control}, {"treatment", out.Treatment}} {
		fmt.Fprintf(w, "%-10s %9d units %11d impressions %9d clicks   CTR %.4f %%\n", a.name, a.Units, a.Impressions, a.Clicks, 100*a.CTR)
	}
	show := func(name string, l stats.Lift) {
		if l.Unknown != "" {
			fmt.Fprintf(w, "%-10s %+.4f points, no interval and no p: %s\n", name, 100*l.Absolute, l.Unknown)
			return
		}
		fmt.Fprintf(w, "%-10s %+.4f points, %g %% at every look: %+.4f to %+.4f   always-valid p %.4g\n",
			name, 100*l.Absolute, 100*(1-out.Alpha), 100*l.Interval.Low, 100*l.Interval.High, l.P)
		fmt.Fprintf(w, "relative   %s, %s to %s\n", percent(l.Relative), percent(l.RelativeI.Low), percent(l.RelativeI.High))
	}
	show("lift", l)
	if e := out.Exact; e != nil {
		fmt.Fprintf(w, "exact      %+.4f to %+.4f points, %g %% at every look from the first unit on; no unit has more than %g impressions\n",
			100*e.Low, 100*e.High, 100*(1-out.Alpha), e.Most)
	}
	switch {
	case out.Adjusted == nil:
	case adjusted.Refused != "":
		fmt.Fprintf(w, "adjusted   not at all: %s\n", adjusted.Refused)
	case adjusted.Theta == 0:
		fmt.Fprintln(w, "adjusted   as above: the time before the test has nothing to go by in one of the arms")
	default:
		show("adjusted", adjusted.Lift)
		fmt.Fprintf(
			w,
			"           by what the units did before the test: theta %.4g takes away %.1f %% of the variance\n",
			adjusted.Theta,
			100*adjusted.Reduction,
		)
	}
	if len(categories) == 0 {
		return
	}
	if in := out.Within; in != nil {
		fmt.Fprintf(w, "within     categories %s\n", in.text())
		if in.Trap != "" {
			fmt.Fprintf(w, "warning    %s\n", in.Trap)
		}
	}
	name := len("category")
	for _, k := range categories {
		name = max(name, utf8.RuneCountInString(k.Name))
	}
	fmt.Fprintf(w, "\n%-*s %9s %12s %26s %10s %8s\n", name, "category", "units", "lift", "interval on its own", "p", "q")
	for _, k := range categories {
		mark := ""
		if k.Discovered {
			mark = fmt.Sprintf("  reported: %s to %s", percent(k.SelectedRelative.Low), percent(k.SelectedRelative.High))
		}
		fmt.Fprintf(
			w,
			"%-*s %9.0f %12s %26s %10.3g %8.3g%s\n",
			name,
			k.Name,
			k.Units,
			percent(k.Relative),
			intervalText(k.Lift),
			k.P,
			k.Q,
			mark,
		)
	}
	fmt.Fprintf(
		w,
		"reported: at most %g %% of these are expected to be false, however often one looks (e-BH); intervals widened for being picked (e-BY)\n",
		100*out.FDR,
	)
}

func (in *statsWithin) text() string {
	if why := in.NullBecause["p_always_valid"]; why != "" {
		return fmt.Sprintf("%s, no interval and no p: %s", percent(number(in.LiftRelative)), why)
	}
	return fmt.Sprintf("%s, %s to %s", percent(number(in.LiftRelative)), percent(number(in.RelativeLow)), percent(value(in.RelativeHigh)))
}

// number is what the pointer points to, NaN where it is nil.
func number(v *float64) float64 {
	if v == nil {
		return math.NaN()
	}
	return *v
}

// intervalText is the relative interval of a row.
func intervalText(l stats.Lift) string {
	if l.Unknown != "" {
		return "too little data"
	}
	return percent(l.RelativeI.Low) + " to " + percent(l.RelativeI.High)
}

// StatsSRMCmd is `ctrloop stats srm`.
type StatsSRMCmd struct {
	File string `arg:"" optional:"" help:"CSV with a header: arm,count; further columns share (planned) and phase for a ramp; '-' reads standard input."`
	statsSource
	statsAnswer
	Shares []float64 `help:"Planned shares in the order of the file's arms, or of the names of the arms of an experiment that is not on the control log; they add up to 1. Without: 0.5,0.5 of a file, and what labels say (arm_share) of an experiment. Not used where the file has a column share or the control log the experiment's ramp."`
	Prior  float64   `default:"1" help:"Weight of the Dirichlet prior: alpha of an arm is prior times its share."`
	Phases int       `help:"Phases planned in all, where more are to come than the file has."`
}

// statsSRM is the answer of `stats srm --json`. BayesFactor is cut at the largest float64; its logarithm is not. Over
// several phases it is the product of theirs, for counts of new units; p_any holds if units come again.
type statsSRM struct {
	BayesFactor    float64          `json:"bayes_factor"`
	P              float64          `json:"p"`
	LogBayesFactor float64          `json:"log_bayes_factor"`
	Counts         map[string]int64 `json:"counts"`
	Shares         []float64        `json:"shares,omitempty"` // where there is one phase
	PAny           float64          `json:"p_any,omitempty"`
	Phases         []statsPhase     `json:"phases,omitempty"`
}

// statsPhase is one step of a ramp.
type statsPhase struct {
	Phase          string           `json:"phase"`
	LogBayesFactor float64          `json:"log_bayes_factor"`
	Counts         map[string]int64 `json:"counts"`
	Shares         []float64        `json:"shares"`
}

// Run reads the file or the warehouse and answers.
func (c *StatsSRMCmd) Run(ctx context.Context, g *Globals, o *output) error {
	read := func(r io.Reader) (statcsv.Phases, error) {
		if len(c.Shares) == 0 {
			return statcsv.ReadPhases(r, []float64{0.5, 0.5})
		}
		return statcsv.ReadPhases(r, c.Shares)
	}
	data, name, err := fromFileOrWarehouse(ctx, g, o, c.File, &c.statsSource, read, func(x *recorded.Experiment) (statcsv.Phases, error) {
		return x.Phases(ctx, c.Shares)
	})
	if err != nil {
		return err
	}
	got, err := stats.SampleRatioRamp(data.Phases, c.Phases, c.Prior)
	if err != nil {
		return fmt.Errorf("sample ratio of %s: %w", name, err)
	}
	out := statsSRM{P: got.PNew, Counts: map[string]int64{}}
	counts := func(p stats.SharePhase) map[string]int64 {
		m := map[string]int64{}
		for i, a := range data.Arms {
			m[a] = p.Counts[i]
			out.Counts[a] += p.Counts[i]
		}
		return m
	}
	for i, p := range data.Phases {
		out.LogBayesFactor += got.LogE[i]
		out.Phases = append(out.Phases, statsPhase{data.Names[i], got.LogE[i], counts(p), p.Shares})
	}
	out.BayesFactor = math.Min(math.Exp(out.LogBayesFactor), math.MaxFloat64)
	if len(data.Phases) == 1 {
		out.Shares, out.Phases = data.Phases[0].Shares, nil
	} else {
		out.PAny = got.PAny
	}
	return o.answerReport(c.statsAnswer, out, statsReport{
		Title: "Sample ratio of " + name,
		Text:  func(w io.Writer) { printSRM(w, data, out) },
		Plots: srmPlots(data),
	})
}

func printSRM(w io.Writer, data statcsv.Phases, out statsSRM) {
	for k, p := range data.Phases {
		if out.Phases != nil {
			fmt.Fprintf(w, "phase %s: ln Bayes factor %.4g\n", data.Names[k], out.Phases[k].LogBayesFactor)
		}
		for i, a := range data.Arms {
			fmt.Fprintf(w, "%-12s %12d units, planned share %g\n", a, p.Counts[i], p.Shares[i])
		}
	}
	fmt.Fprintf(w, "Bayes factor against the plan %.6g, always-valid p %.4g\n", out.BayesFactor, out.P)
	if out.Phases != nil {
		fmt.Fprintf(w, "the product of the phases, for counts of units at their first exposure; if units come again: p %.4g\n", out.PAny)
	}
}

// StatsOPECmd is `ctrloop stats ope`.
type StatsOPECmd struct {
	Log string `arg:"" optional:"" help:"CSV, gzipped or not, with a header: item_id,position,click,propensity_score."`
	statsSource
	statsAnswer
	Policy string  `required:"" placeholder:"FILE" help:"Policy to evaluate. CSV with a header: item_id,position,probability; with --experiment: product,creative,probability."`
	Clip   float64 `default:"5" help:"Largest weight of clipped IPS."`
	Switch float64 `default:"5" help:"Largest weight at which Switch-DR uses the observed reward."`
	Shrink float64 `default:"10" help:"Lambda of DRos."`
	SG     float64 `name:"sg" default:"0.1" help:"Lambda of sub-Gaussian IPS, 0 to 1."`
	Alpha  float64 `default:"0.05" help:"1 - confidence of the intervals (one look)."`
}

// statsOPE is the answer of `stats ope --json`.
type statsOPE struct {
	Estimators map[stats.Estimator]stats.Estimate `json:"estimators"`
	ESS        float64                            `json:"ess"`
	// MeanWeight is about 1 where the logged propensities are those with which the log was made.
	MeanWeight   float64  `json:"mean_weight"`
	MeanWeightSE float64  `json:"mean_weight_se"`
	Warnings     []string `json:"warnings,omitempty"`
	Rows         int      `json:"rows"`
	Clicks       int64    `json:"clicks"`
}

// Run reads the policy and the log, and answers.
func (c *StatsOPECmd) Run(ctx context.Context, g *Globals, o *output) error {
	params := stats.OPEParams{Clip: c.Clip, Switch: c.Switch, Shrink: c.Shrink, SG: c.SG, Alpha: c.Alpha}
	if err := params.Validate(); err != nil {
		return usageError{err}
	}
	ids := statcsv.NewNames()
	readPolicy := statcsv.ReadPolicy
	if c.Experiment != "" {
		readPolicy = ids.ReadPolicy
	}
	policy, err := readStatsFile(c.Policy, readPolicy)
	if err != nil {
		return err
	}
	decisions := func(x *recorded.Experiment) (*statcsv.Log, error) { return x.Decisions(ctx, ids) }
	log, name, err := fromFileOrWarehouse(ctx, g, o, c.Log, &c.statsSource, statcsv.ReadLog, decisions)
	if err != nil {
		return err
	}
	samples, err := log.Samples(policy, log.Prior())
	if err != nil {
		return fmt.Errorf("%s with %s: %w", name, c.Policy, err)
	}
	got, err := stats.EvaluatePolicy(samples, params)
	if err != nil {
		return fmt.Errorf("%s with %s: %w", name, c.Policy, err)
	}
	out := statsOPE{Estimators: got.Estimates, ESS: got.ESS, Rows: len(samples), Clicks: log.Clicks(),
		MeanWeight: got.MeanWeight, MeanWeightSE: got.MeanWeightSE, Warnings: got.Warnings()}
	return o.answerReport(c.statsAnswer, out, statsReport{
		Title: "Value of " + c.Policy + " on " + name,
		Text: func(w io.Writer) {
			fmt.Fprintf(w, "%d rows, %d clicks, effective sample size %.1f, mean importance weight %.4g\n", out.Rows, out.Clicks, got.ESS,
				got.MeanWeight)
			for _, name := range stats.Estimators() {
				e := got.Estimates[name]
				fmt.Fprintf(w, "%-12s %10.6f   %g %%: %.6f to %.6f\n", name, e.Value, 100*(1-c.Alpha), e.Low, e.High)
			}
			for _, warning := range out.Warnings {
				fmt.Fprintln(w, "warning      "+warning)
			}
		},
		Plots: opePlots(out),
	})
}

func readStatsFile[T any](path string, read func(io.Reader) (T, error)) (T, error) {
	in := io.Reader(os.Stdin)
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			var zero T
			return zero, usageError{err}
		}
		defer f.Close()
		in = f
	}
	v, err := read(in)
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	if errors.Is(err, statcsv.ErrInput) {
		err = usageError{err}
	}
	return v, err
}

// answer prints the result as text, unless the JSON goes to standard output, and writes the JSON where asked.
func (o *output) answer(jsonFile string, v any, text func(io.Writer)) error {
	if err := checkFinite(v); err != nil {
		return err
	}
	if jsonFile != "-" {
		text(o.stdout)
	}
	return o.writeJSON(jsonFile, v)
}

func finite(x float64) *float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return nil
	}
	return &x
}

func percent(x float64) string {
	switch {
	case math.IsNaN(x):
		return "not defined (no control clicks)"
	case math.IsInf(x, 1):
		return "no upper bound"
	}
	return fmt.Sprintf("%+.2f %%", 100*x)
}
