package trainerbridge

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Config of the trainer-bridge.
type Config struct {
	// Interval between two looks at the control log, as a safety net: a change wakes it at once.
	Interval time.Duration `yaml:"interval"`
	// Threads of a training process. One is the fastest for the embedded models on a machine that also serves:
	// threads of small matrices spend their time waiting for each other.
	Threads int `yaml:"threads"`
	// Seed of training; each job mixes in its data set.
	Seed uint64 `yaml:"seed"`
	// Timeout is the longest time that a job may go without progress (a line in its curve or its log) before it is
	// stopped and counts as failed. A slow machine is no failure: how long a job takes has no bound.
	Timeout time.Duration `yaml:"timeout"`
	// StopGrace is the time a job has to write its checkpoint after SIGTERM.
	StopGrace time.Duration `yaml:"stop_grace"`
	// Device is where jobs compute: cpu, cuda or auto (a GPU where there is one).
	Device string `yaml:"device,omitempty"`
	// Precision of the models' weights: fp32, bf16 or fp16. Large bases want bf16.
	Precision string `yaml:"precision,omitempty"`
	// Quantize is 4bit where the base's weights do not fit otherwise (needs an NVIDIA GPU), or empty.
	Quantize string `yaml:"quantize,omitempty"`
	// Checkpointing recomputes activations: less memory, a third more time. Large bases want it.
	Checkpointing bool `yaml:"checkpointing,omitempty"`
	// Reward are hyper-parameters of reward jobs, passed to the trainer as they are; docs/jobs.md lists them. form: mllm
	// makes the two-image reward model of the base instead of the small one.
	Reward map[string]any `yaml:"reward,omitempty"`
	// Rounds are hyper-parameters of the preference rounds.
	Rounds map[string]any `yaml:"rounds,omitempty"`
}

// Default is the configuration of an embedded run.
func Default() Config {
	return Config{
		Interval: 5 * time.Second, Threads: 1, Timeout: 2 * time.Hour, StopGrace: 30 * time.Second, Device: "cpu", Precision: "fp32",
	}
}

// Placement of the jobs' models.
func (c Config) Placement() Placement {
	return Placement{Device: c.Device, Precision: c.Precision, Quantize: c.Quantize, Checkpointing: c.Checkpointing}
}

// Validate returns every problem of the section, each with its key.
func (c Config) Validate() error {
	var errs []error
	if c.Interval <= 0 {
		errs = append(errs, fmt.Errorf("interval: %v: want more than 0", c.Interval))
	}
	if c.Threads < 1 {
		errs = append(errs, fmt.Errorf("threads: %d: want at least 1", c.Threads))
	}
	if c.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("timeout: %v: want more than 0", c.Timeout))
	}
	if c.StopGrace <= 0 {
		errs = append(errs, fmt.Errorf("stop_grace: %v: want more than 0", c.StopGrace))
	}
	for _, one := range []struct {
		key, value string
		known      []string
	}{
		{"device", c.Device, []string{"", "cpu", "cuda", "auto"}},
		{"precision", c.Precision, []string{"", "fp32", "bf16", "fp16"}},
		{"quantize", c.Quantize, []string{"", "4bit"}},
	} {
		if !slices.Contains(one.known, one.value) {
			errs = append(errs, fmt.Errorf("%s: %q: want one of %s", one.key, one.value, strings.Join(one.known[1:], ", ")))
		}
	}
	return errors.Join(errs...)
}
