package experiment

import (
	"errors"
	"fmt"
	"time"

	"ctrloop/serving/experiment/ramp"
)

// Config of the experiment service.
type Config struct {
	// Interval between two looks at the running experiments, wall clock. Looking often costs no alpha.
	Interval time.Duration `yaml:"interval"`
	// Timeout of one look at one experiment, wall clock.
	Timeout time.Duration `yaml:"timeout"`
	// Settle is how long after a step impressions are left out, in event time: until every replica has read the
	// step, some still assign by the old share.
	Settle time.Duration `yaml:"settle"`
	// Ramp says when the controller steps, promotes and rolls back.
	Ramp ramp.Config `yaml:"ramp"`
}

// Default is the configuration of an embedded run.
func Default() Config {
	return Config{Interval: 5 * time.Second, Timeout: 30 * time.Second, Settle: time.Minute, Ramp: ramp.Default()}
}

// Validate returns every problem, each with its path below this configuration.
func (c Config) Validate() error {
	var errs []error
	if c.Interval < 10*time.Millisecond {
		errs = append(errs, fmt.Errorf("interval: %v: want at least 10ms", c.Interval))
	}
	if c.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("timeout: %v: want more than 0", c.Timeout))
	}
	if c.Settle < 0 {
		errs = append(errs, fmt.Errorf("settle: %v: want 0 or more", c.Settle))
	}
	if err := c.Ramp.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("ramp: %w", err))
	}
	return errors.Join(errs...)
}
