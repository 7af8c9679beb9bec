package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"ctrloop/internal/stats"
	"ctrloop/internal/stats/statcsv"
)

// StatsCmd is `ctrloop stats`: the statistics on a file, no server.
type StatsCmd struct {
	Lift StatsLiftCmd `cmd:"" help:"Click-through lift of treatment over control with an always-valid interval. CSV: unit,arm,impressions,clicks."`
	SRM  StatsSRMCmd  `cmd:"" name:"srm" help:"Sequential sample-ratio test. CSV: arm,count."`
	OPE  StatsOPECmd  `cmd:"" name:"ope" help:"Off-policy value of a policy on a logged bandit data set. CSV: item_id,position,click,propensity_score."`
}

// StatsLiftCmd is `ctrloop stats lift`.
type StatsLiftCmd struct {
	File  string  `arg:"" help:"CSV with a header: unit,arm,impressions,clicks; arms control and treatment; '-' reads standard input."`
	JSON  string  `name:"json" placeholder:"FILE" help:"Write the result as JSON to FILE ('-': standard output)."`
	Alpha float64 `default:"0.05" help:"Two-sided error over all looks."`
	NStar float64 `name:"nstar" default:"5000" help:"Units at which the interval is tightest."`
}

// statsArm is one arm of `stats lift --json`.
type statsArm struct {
	Units       int64   `json:"units"`
	Impressions int64   `json:"impressions"`
	Clicks      int64   `json:"clicks"`
	CTR         float64 `json:"ctr"`
}

// statsLift is the answer of `stats lift --json`. Rates are fractions of 1. Relative figures are null where
// the data bound them not at all.
type statsLift struct {
	Control       statsArm `json:"control"`
	Treatment     statsArm `json:"treatment"`
	LiftAbsolute  float64  `json:"lift_absolute"`
	Low           float64  `json:"low"`
	High          float64  `json:"high"`
	SE            float64  `json:"se"`
	PAlwaysValid  float64  `json:"p_always_valid"`
	LiftRelative  *float64 `json:"lift_relative"`
	RelativeLow   *float64 `json:"relative_low"`
	RelativeHigh  *float64 `json:"relative_high"`
	Alpha         float64  `json:"alpha"`
	NStar         float64  `json:"nstar"`
	UnitsInBoth   int      `json:"units_in_both_arms"`
	Uninformative bool     `json:"uninformative"`
}

// Run reads the file and answers.
func (c *StatsLiftCmd) Run(o *output) error {
	data, err := readStatsFile(c.File, statcsv.ReadLift)
	if err != nil {
		return err
	}
	l, err := stats.Compare(data.Control, data.Treatment, stats.Sequence{Alpha: c.Alpha, NStar: c.NStar})
	if err != nil {
		return fmt.Errorf("lift of %s: %w", c.File, err)
	}
	arm := func(s stats.RatioSums) statsArm { return statsArm{s.N, int64(s.D), int64(s.M), s.Rate()} }
	out := statsLift{
		Control: arm(data.Control), Treatment: arm(data.Treatment),
		LiftAbsolute: l.Absolute, Low: l.Interval.Low, High: l.Interval.High, SE: l.SE, PAlwaysValid: l.P,
		LiftRelative: finite(l.Relative), RelativeLow: finite(l.RelativeI.Low), RelativeHigh: finite(l.RelativeI.High),
		Alpha: c.Alpha, NStar: c.NStar, UnitsInBoth: data.InBothArms, Uninformative: l.Uninformative,
	}
	if data.InBothArms > 0 {
		fmt.Fprintf(o.stderr, "warning: %d units have rows in both arms; they count in each, and the arms are then not independent\n", data.InBothArms)
	}
	return o.answer(c.JSON, out, func(w io.Writer) {
		for _, a := range []struct {
			name string
			statsArm
		}{{"control", out.Control}, {"treatment", out.Treatment}} {
			fmt.Fprintf(w, "%-10s %9d units %11d impressions %9d clicks   CTR %.4f %%\n", a.name, a.Units, a.Impressions, a.Clicks, 100*a.CTR)
		}
		fmt.Fprintf(w, "lift       %+.4f points, %g %% at every look: %+.4f to %+.4f   always-valid p %.4g\n",
			100*l.Absolute, 100*(1-c.Alpha), 100*l.Interval.Low, 100*l.Interval.High, l.P)
		fmt.Fprintf(w, "relative   %s, %s to %s\n", percent(l.Relative), percent(l.RelativeI.Low), percent(l.RelativeI.High))
		if l.Uninformative {
			fmt.Fprintln(w, "note       the data show no variation (no clicks, or one unit an arm), so the interval is the whole range")
		}
	})
}

// StatsSRMCmd is `ctrloop stats srm`.
type StatsSRMCmd struct {
	File   string    `arg:"" help:"CSV with a header: arm,count; '-' reads standard input."`
	JSON   string    `name:"json" placeholder:"FILE" help:"Write the result as JSON to FILE ('-': standard output)."`
	Shares []float64 `default:"0.5,0.5" help:"Planned shares in the order of the file's rows; they add up to 1."`
	Prior  float64   `default:"1" help:"Weight of the Dirichlet prior: alpha of an arm is prior times its share."`
}

// statsSRM is the answer of `stats srm --json`. BayesFactor is cut at the largest float64; its logarithm is not.
type statsSRM struct {
	BayesFactor    float64          `json:"bayes_factor"`
	P              float64          `json:"p"`
	LogBayesFactor float64          `json:"log_bayes_factor"`
	Counts         map[string]int64 `json:"counts"`
	Shares         []float64        `json:"shares"`
}

// Run reads the file and answers.
func (c *StatsSRMCmd) Run(o *output) error {
	type table struct {
		arms   []string
		counts []int64
	}
	data, err := readStatsFile(c.File, func(r io.Reader) (t table, err error) {
		t.arms, t.counts, err = statcsv.ReadCounts(r)
		return t, err
	})
	if err != nil {
		return err
	}
	ln, err := stats.SampleRatio(data.counts, c.Shares, c.Prior)
	if err != nil {
		return fmt.Errorf("sample ratio of %s: %w", c.File, err)
	}
	out := statsSRM{BayesFactor: math.Min(math.Exp(ln), math.MaxFloat64), P: stats.PFromLogE(ln), LogBayesFactor: ln, Counts: map[string]int64{}, Shares: c.Shares}
	for i, a := range data.arms {
		out.Counts[a] = data.counts[i]
	}
	return o.answer(c.JSON, out, func(w io.Writer) {
		for i, a := range data.arms {
			fmt.Fprintf(w, "%-12s %12d units, planned share %g\n", a, data.counts[i], c.Shares[i])
		}
		fmt.Fprintf(w, "Bayes factor against the plan %.6g, always-valid p %.4g\n", out.BayesFactor, out.P)
	})
}

// StatsOPECmd is `ctrloop stats ope`.
type StatsOPECmd struct {
	Log    string  `arg:"" help:"CSV, gzipped or not, with a header: item_id,position,click,propensity_score."`
	Policy string  `required:"" placeholder:"FILE" help:"Policy to evaluate. CSV with a header: item_id,position,probability."`
	JSON   string  `name:"json" placeholder:"FILE" help:"Write the result as JSON to FILE ('-': standard output)."`
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
	Rows       int                                `json:"rows"`
	Clicks     int64                              `json:"clicks"`
}

// Run reads both files and answers.
func (c *StatsOPECmd) Run(o *output) error {
	if !(c.Alpha > 0 && c.Alpha < 1) || !(c.SG >= 0 && c.SG <= 1) || !(c.Shrink > 0) || !(c.Clip > 0) || !(c.Switch >= 0) {
		return errors.New("ope: alpha must lie in (0,1), sg in [0,1], shrink and clip must be positive, switch not negative")
	}
	policy, err := readStatsFile(c.Policy, statcsv.ReadPolicy)
	if err != nil {
		return err
	}
	log, err := readStatsFile(c.Log, statcsv.ReadLog)
	if err != nil {
		return err
	}
	samples, err := log.Samples(policy)
	if err != nil {
		return fmt.Errorf("%s with %s: %w", c.Log, c.Policy, err)
	}
	est, ess, err := stats.EvaluatePolicy(samples, stats.OPEParams{Clip: c.Clip, Switch: c.Switch, Shrink: c.Shrink, SG: c.SG, Alpha: c.Alpha})
	if err != nil {
		return fmt.Errorf("%s with %s: %w", c.Log, c.Policy, err)
	}
	out := statsOPE{Estimators: est, ESS: ess, Rows: len(samples), Clicks: log.Clicks()}
	return o.answer(c.JSON, out, func(w io.Writer) {
		fmt.Fprintf(w, "%d rows, %d clicks, effective sample size %.1f\n", out.Rows, out.Clicks, ess)
		for _, name := range stats.Estimators() {
			e := est[name]
			fmt.Fprintf(w, "%-12s %10.6f   %g %%: %.6f to %.6f\n", name, e.Value, 100*(1-c.Alpha), e.Low, e.High)
		}
		if ess < 100 {
			fmt.Fprintln(w, "note         the effective sample size is small: the policies differ too much for these figures to be trusted")
		}
	})
}

func readStatsFile[T any](path string, read func(io.Reader) (T, error)) (T, error) {
	in := io.Reader(os.Stdin)
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			var zero T
			return zero, err
		}
		defer f.Close()
		in = f
	}
	v, err := read(in)
	if err != nil {
		return v, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}

// answer prints the result as text, unless the JSON goes to standard output, and writes the JSON where asked.
func (o *output) answer(jsonFile string, v any, text func(io.Writer)) error {
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
