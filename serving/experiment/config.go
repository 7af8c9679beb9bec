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
	// Failed says what follows when looks fail one after another, because the warehouse does not answer or the figures of a
	// guard cannot be read. No step is taken and nothing promoted while they do.
	Failed Failed `yaml:"failed_looks"`
	// Ramp says when the controller steps, promotes and rolls back.
	Ramp ramp.Config `yaml:"ramp"`
}

// Failed counts looks in a row at one experiment that failed. 0 turns a reaction off.
type Failed struct {
	// AlarmAfter looks: an alert in status and console, and ctrloop_experiment_looks_failing is 1.
	AlarmAfter int `yaml:"alarm_after"`
	// PauseAfter looks: the experiment is paused, and a person resumes it. With looks every 5 s, 120 are ten minutes.
	PauseAfter int `yaml:"pause_after"`
	// RollBackAfter looks: all traffic goes back to the control. With looks every 5 s, 720 are an hour.
	RollBackAfter int `yaml:"roll_back_after"`
}

// Default is the configuration of an embedded run.
func Default() Config {
	return Config{Interval: 5 * time.Second, Timeout: 30 * time.Second, Settle: time.Minute,
		Failed: Failed{AlarmAfter: 3, PauseAfter: 120, RollBackAfter: 720}, Ramp: ramp.Default()}
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
	for _, n := range []struct {
		name string
		n    int
	}{{"alarm_after", c.Failed.AlarmAfter}, {"pause_after", c.Failed.PauseAfter}, {"roll_back_after", c.Failed.RollBackAfter}} {
		if n.n < 0 {
			errs = append(errs, fmt.Errorf("failed_looks.%s: %d: want 0 (never) or more", n.name, n.n))
		}
	}
	if err := c.Ramp.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("ramp: %w", err))
	}
	return errors.Join(errs...)
}
