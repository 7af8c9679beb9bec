package trainerbridge

import (
	"errors"
	"fmt"
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
	// Timeout after which a job is stopped and counts as failed.
	Timeout time.Duration `yaml:"timeout"`
	// StopGrace is the time a job has to write its checkpoint after SIGTERM.
	StopGrace time.Duration `yaml:"stop_grace"`
	// Retries of a job that failed in a way that may pass (out of memory, timeout, interrupted, a file missing, a crash);
	// wrong input, diverged training and too little evidence are not tried again.
	Retries int `yaml:"retries"`
	// Backoff before the first of them, doubled with each.
	Backoff time.Duration `yaml:"backoff"`
	// Reward are hyper-parameters of reward jobs, passed to the trainer as they are; docs/jobs.md lists them.
	Reward map[string]any `yaml:"reward,omitempty"`
	// Rounds are hyper-parameters of the preference rounds.
	Rounds map[string]any `yaml:"rounds,omitempty"`
}

// Default is the configuration of an embedded run.
func Default() Config {
	return Config{Interval: 5 * time.Second, Threads: 1, Timeout: 2 * time.Hour, StopGrace: 30 * time.Second, Retries: 2, Backoff: time.Minute}
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
	if c.Retries < 0 || c.Retries > 100 {
		errs = append(errs, fmt.Errorf("retries: %d: want 0 to 100", c.Retries))
	}
	if c.Backoff <= 0 {
		errs = append(errs, fmt.Errorf("backoff: %v: want more than 0", c.Backoff))
	}
	return errors.Join(errs...)
}
