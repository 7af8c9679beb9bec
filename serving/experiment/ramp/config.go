package ramp

import (
	"errors"
	"fmt"
)

// Config says when the controller acts. Samples are counted per arm, the smaller one deciding.
type Config struct {
	// MinUnits is the number of units (users or products) in the smaller arm before a step may end.
	MinUnits int64 `yaml:"min_units"`
	// MinImpressions is the number of mature impressions in the smaller arm before a step may end.
	MinImpressions int64 `yaml:"min_impressions"`
	// MinClicks is the number of clicks that the smaller arm must be expected to have (its impressions times the
	// pooled rate) before a rule about click-through rates may fire: the sequences are asymptotic.
	MinClicks float64 `yaml:"min_clicks"`
	// Margin is the relative loss of click-through rate that the guard tolerates, e.g. 0.05: beyond it, roll back.
	Margin float64 `yaml:"margin"`
	// GuardAlpha is the error of the click-through guard (one-sided, all looks of one step).
	GuardAlpha float64 `yaml:"guard_alpha"`
	// SRMAlpha is the error of the sample-ratio guard over all looks of all steps.
	SRMAlpha float64 `yaml:"srm_alpha"`
	// SRMPrior is the weight of the sample-ratio test's Dirichlet prior, in units.
	SRMPrior float64 `yaml:"srm_prior"`
	// ErrorLimit is the share of the treatment's generations that may fail.
	ErrorLimit float64 `yaml:"error_limit"`
	// ErrorAlpha is the error of the generation guard over all looks.
	ErrorAlpha float64 `yaml:"error_alpha"`
	// MaxUnits in both arms of the deciding step before the experiment ends as inconclusive; 0: no such limit.
	MaxUnits int64 `yaml:"max_units"`
	// MaxImpressions in both arms of the deciding step before the experiment ends as inconclusive; 0: no such
	// limit. Where the same units come back for ever, only this one ends it; so it does at an earlier step that never
	// gets its smallest sample.
	MaxImpressions int64 `yaml:"max_impressions"`
	// Guardrails on other metrics than clicks, generation errors and the sample ratio.
	Guardrails []Guardrail `yaml:"guardrails"`
}

// Direction says which way a metric is better. The list is closed.
type Direction string

// Directions.
const (
	HigherIsBetter Direction = "higher"
	LowerIsBetter  Direction = "lower"
)

// Guardrail bounds how much worse than the control the treatment may be in one metric.
type Guardrail struct {
	// Metric is its name, as the service measures it: matching_score, valid_share, gateway_seconds.
	Metric string `yaml:"metric" json:"metric"`
	// Better is which way is better: higher or lower.
	Better Direction `yaml:"better" json:"better"`
	// Margin is the relative loss that is tolerated, e.g. 0.1.
	Margin float64 `yaml:"margin" json:"margin"`
	// Alpha is the error of this guard: one-sided, all looks of one step.
	Alpha float64 `yaml:"alpha" json:"alpha"`
	// MinUnits in the smaller arm before it may fire: its sequence is asymptotic.
	MinUnits int64 `yaml:"min_units" json:"min_units"`
	// Action when it fires: rollback, or hold, which stops the ramp while the metric is beyond its margin.
	Action Action `yaml:"action" json:"action"`
}

// Default is the configuration of an embedded run.
func Default() Config {
	return Config{
		MinUnits: 100, MinImpressions: 1000, MinClicks: 20, Margin: 0.05, GuardAlpha: 0.05,
		SRMAlpha: 0.01, SRMPrior: 1, ErrorLimit: 0.05, ErrorAlpha: 0.01, MaxUnits: 2_000_000, MaxImpressions: 20_000_000,
		Guardrails: []Guardrail{
			{Metric: MatchingScore, Better: HigherIsBetter, Margin: 0.1, Alpha: 0.01, MinUnits: 100, Action: RollBack},
			{Metric: ValidShare, Better: HigherIsBetter, Margin: 0.05, Alpha: 0.01, MinUnits: 100, Action: RollBack},
			// Latencies have heavy tails, and a cold cache is no reason to give a model up: the ramp waits.
			{Metric: GatewaySeconds, Better: LowerIsBetter, Margin: 0.25, Alpha: 0.01, MinUnits: 1000, Action: Hold},
		},
	}
}

// Validate returns every problem, each with its path.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, path, want string, v any) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s: %v: want %s", path, v, want))
		}
	}
	open01 := func(x float64) bool { return x > 0 && x < 1 }
	check(c.MinUnits >= 2, "min_units", "at least 2, a variance needs them", c.MinUnits)
	check(c.MinImpressions >= 1, "min_impressions", "at least 1", c.MinImpressions)
	check(c.MinClicks >= 1, "min_clicks", "at least 1", c.MinClicks)
	check(c.Margin >= 0 && c.Margin < 1, "margin", "0 to below 1", c.Margin)
	check(open01(c.GuardAlpha), "guard_alpha", "between 0 and 1", c.GuardAlpha)
	check(open01(c.SRMAlpha), "srm_alpha", "between 0 and 1", c.SRMAlpha)
	check(c.SRMPrior > 0, "srm_prior", "more than 0", c.SRMPrior)
	check(open01(c.ErrorLimit), "error_limit", "between 0 and 1", c.ErrorLimit)
	check(open01(c.ErrorAlpha), "error_alpha", "between 0 and 1", c.ErrorAlpha)
	check(c.MaxUnits >= 0, "max_units", "0 or more", c.MaxUnits)
	check(c.MaxImpressions >= 0, "max_impressions", "0 or more", c.MaxImpressions)
	seen := map[string]bool{}
	for i, g := range c.Guardrails {
		at := func(key string) string { return fmt.Sprintf("guardrails[%d].%s", i, key) }
		check(g.Metric != "" && !seen[g.Metric], at("metric"), "a name, each once", g.Metric)
		check(g.Better == HigherIsBetter || g.Better == LowerIsBetter, at("better"), "higher or lower", g.Better)
		check(g.Margin >= 0 && g.Margin < 1, at("margin"), "0 to below 1", g.Margin)
		check(open01(g.Alpha), at("alpha"), "between 0 and 1", g.Alpha)
		check(g.MinUnits >= 2, at("min_units"), "at least 2, a variance needs them", g.MinUnits)
		check(g.Action == RollBack || g.Action == Hold, at("action"), "rollback or hold", g.Action)
		seen[g.Metric] = true
	}
	return errors.Join(errs...)
}
