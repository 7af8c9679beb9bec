package creatives

import (
	"errors"
	"fmt"
	"time"
)

// Config of creative generation.
type Config struct {
	// Dir keeps the progress of jobs.
	Dir string `yaml:"dir"`
	// SizePx is the side of a creative.
	SizePx int `yaml:"size_px"`
	// PerProduct is how many creatives a job makes unless it says otherwise.
	PerProduct int `yaml:"per_product"`
	// Concurrency is the number of products described and drawn at a time. The model server batches what is in flight.
	Concurrency int `yaml:"concurrency"`
	// Rounds of asking for more descriptions when some were alike or not well formed.
	Rounds int `yaml:"rounds"`
	// Patience with a model that is not ready or full, per product, before the product counts as failed.
	Patience time.Duration `yaml:"patience"`
	// MaxJobs bounds the jobs that are kept; the oldest finished ones go first.
	MaxJobs int `yaml:"max_jobs"`
	// MaxQueued bounds the pictures that requests may have waiting; beyond it they are turned away with 429.
	MaxQueued int `yaml:"max_queued"`
}

// Default is the configuration of an embedded run.
func Default() Config {
	return Config{SizePx: 256, PerProduct: 8, Concurrency: 48, Rounds: 3, Patience: 2 * time.Minute, MaxJobs: 200, MaxQueued: 100_000}
}

// Limits.
const (
	maxPerProduct = 256
	maxChoices    = 16 // of one request to the model
)

// Validate returns every problem of the configuration, each with its path.
func (c Config) Validate() error {
	var errs []error
	bad := func(path, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...)))
	}
	if c.Dir == "" {
		bad("dir", "want a folder")
	}
	if c.SizePx < 64 || c.SizePx > 2048 {
		bad("size_px", "%d: want 64 to 2048", c.SizePx)
	}
	if c.PerProduct < 1 || c.PerProduct > maxPerProduct {
		bad("per_product", "%d: want 1 to %d", c.PerProduct, maxPerProduct)
	}
	if c.Concurrency < 1 {
		bad("concurrency", "%d: want at least 1", c.Concurrency)
	}
	if c.Rounds < 1 {
		bad("rounds", "%d: want at least 1", c.Rounds)
	}
	if c.Patience <= 0 {
		bad("patience", "%v: want more than 0", c.Patience)
	}
	if c.MaxJobs < 1 {
		bad("max_jobs", "%d: want at least 1", c.MaxJobs)
	}
	if c.MaxQueued < 1 {
		bad("max_queued", "%d: want at least 1", c.MaxQueued)
	}
	return errors.Join(errs...)
}
