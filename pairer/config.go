package pairer

import (
	"errors"
	"fmt"
	"time"

	"ctrloop/pairer/evidence/stage"
	"ctrloop/pairer/pairs"
)

// Config of the pairer.
type Config struct {
	// Interval between two looks at the evidence.
	Interval time.Duration `yaml:"interval"`
	// Policy of pair building: posterior (weights from Beta posteriors) or caig (hard floor and ratio band).
	Policy pairs.Policy `yaml:"policy"`
	// MinImpressions a creative needs in a cell (product, placement) before it is compared.
	MinImpressions int64 `yaml:"min_impressions"`
	// MinWeight below which a pair counts as a tie and is dropped, 0 to 1.
	MinWeight float64 `yaml:"min_weight"`
	// MaxPerCell keeps the heaviest pairs of a cell; 0 keeps all.
	MaxPerCell int `yaml:"max_per_cell"`
	// HoldoutFraction of products that no training sees; they are the test split, 0 to 1.
	HoldoutFraction float64 `yaml:"holdout_fraction"`
	// HoldoutProducts are held out besides, by id.
	HoldoutProducts []string `yaml:"holdout_products,omitempty"`
	// MinEffectivePairs starts a training cycle: what training pairs have told since the newest data set, as the sum of the
	// changes of their weights (a pair that is new and sure: 1; one that has turned around: 2).
	MinEffectivePairs float64 `yaml:"min_effective_pairs"`
	// FailedPause is how long no cycle starts after one whose training failed, doubled with each in a row.
	FailedPause time.Duration `yaml:"failed_pause"`
	// Seed recorded with each data set.
	Seed uint64 `yaml:"seed"`
	// Evidence: labels added up on evidence.v1.
	Evidence stage.Config `yaml:"evidence"`
}

// Default is the configuration of an embedded run.
func Default() Config {
	return Config{
		Interval: 10 * time.Second, Policy: pairs.PolicyPosterior, MinImpressions: 100, MinWeight: 0.02,
		HoldoutFraction: 0.2, MinEffectivePairs: 1000, FailedPause: time.Minute,
		Evidence: stage.Default(),
	}
}

// Validate returns every problem of the section, each with its key.
func (c Config) Validate() error {
	var errs []error
	bad := func(path, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...)))
	}
	if c.Interval <= 0 {
		bad("interval", "%v: want more than 0", c.Interval)
	}
	if c.Policy != pairs.PolicyPosterior && c.Policy != pairs.PolicyCAIG {
		bad("policy", "%q: want posterior or caig", c.Policy)
	}
	if c.MinImpressions < 1 {
		bad("min_impressions", "%d: want at least 1", c.MinImpressions)
	}
	if c.MinWeight < 0 || c.MinWeight >= 1 {
		bad("min_weight", "%v: want 0 to 1", c.MinWeight)
	}
	if c.MaxPerCell < 0 {
		bad("max_per_cell", "%d: want 0 (all) or more", c.MaxPerCell)
	}
	if c.HoldoutFraction < 0 || c.HoldoutFraction >= 1 {
		bad("holdout_fraction", "%v: want 0 to below 1", c.HoldoutFraction)
	}
	if c.MinEffectivePairs <= 0 {
		bad("min_effective_pairs", "%v: want more than 0", c.MinEffectivePairs)
	}
	if c.FailedPause <= 0 {
		bad("failed_pause", "%v: want more than 0", c.FailedPause)
	}
	return errors.Join(errs...)
}

// Pairs is the configuration of pair building.
func (c Config) Pairs() pairs.Config {
	held := make(map[string]bool, len(c.HoldoutProducts))
	for _, p := range c.HoldoutProducts {
		held[p] = true
	}
	return pairs.Config{
		Policy: c.Policy, MinImpressions: c.MinImpressions, MinWeight: c.MinWeight, MaxPerCell: c.MaxPerCell,
		HoldoutFraction: c.HoldoutFraction, HoldoutProducts: held,
	}
}
