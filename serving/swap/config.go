package swap

import (
	"errors"
	"fmt"
	"time"
)

// Config of hot swapping.
type Config struct {
	// Logical names of the models that are served.
	Logicals []string `yaml:"logicals"`
	// ServedBase is the name under which the model servers answer for the base model itself.
	ServedBase string `yaml:"served_base"`
	// BaseDir is the folder of the base model that the servers run: adapters are checked against it.
	BaseDir string `yaml:"base_dir"`
	// MaxRank is the largest LoRA rank that the servers take.
	MaxRank int `yaml:"max_rank"`
	// VisionLoRA says that the servers apply adapters to the vision tower too.
	VisionLoRA bool `yaml:"vision_lora"`
	// LogprobTolerance of the activation probe, natural logarithm per token: 0.005 for float32, 0.15 for bfloat16.
	LogprobTolerance float64 `yaml:"logprob_tolerance"`
	// CheckInterval between two surveys of the replicas; a failed request causes one at once.
	CheckInterval time.Duration `yaml:"check_interval"`
	// DrainTimeout is how long requests of a retired version may take before it is unloaded anyway.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
	// Quarantine of a replica that failed a probe, before it is tried again.
	Quarantine time.Duration `yaml:"quarantine"`
}

// Default is the configuration of an embedded run.
func Default() Config {
	return Config{
		Logicals: []string{"prompt"}, ServedBase: "prompt-base", MaxRank: 256, LogprobTolerance: 0.005,
		CheckInterval: time.Second, DrainTimeout: 2 * time.Minute, Quarantine: 10 * time.Second,
	}
}

// Validate returns every problem of the configuration, each with its path.
func (c Config) Validate() error {
	var errs []error
	bad := func(path, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...)))
	}
	if len(c.Logicals) == 0 {
		bad("logicals", "want at least one name")
	}
	if c.ServedBase == "" {
		bad("served_base", "want the name that the model servers give to the base")
	}
	if c.BaseDir == "" {
		bad("base_dir", "want the folder of the base model")
	}
	if c.MaxRank < 1 {
		bad("max_rank", "%d: want at least 1", c.MaxRank)
	}
	if c.LogprobTolerance <= 0 {
		bad("logprob_tolerance", "%v: want more than 0", c.LogprobTolerance)
	}
	for path, d := range map[string]time.Duration{
		"check_interval": c.CheckInterval, "drain_timeout": c.DrainTimeout, "quarantine": c.Quarantine,
	} {
		if d <= 0 {
			bad(path, "%v: want more than 0", d)
		}
	}
	return errors.Join(errs...)
}
