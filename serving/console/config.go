package console

import (
	"errors"
	"fmt"
	"time"
)

// Config of the console.
type Config struct {
	// Refresh is the interval between two updates of the page, wall clock. All viewers share one reading.
	Refresh time.Duration `yaml:"refresh"`
	// Timeout of gathering one update, wall clock. After it the page says that its data are old.
	Timeout time.Duration `yaml:"timeout"`
	// MaxStreams is the number of live viewers; one more ends the oldest stream, whose page polls.
	MaxStreams int `yaml:"max_streams"`
}

// Default is the configuration of an embedded run.
func Default() Config { return Config{Refresh: time.Second, Timeout: 5 * time.Second, MaxStreams: 32} }

// Validate returns every problem, each with its path below this configuration.
func (c Config) Validate() error {
	var errs []error
	if c.Refresh < 50*time.Millisecond {
		errs = append(errs, fmt.Errorf("refresh: %v: want at least 50ms", c.Refresh))
	}
	if c.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("timeout: %v: want more than 0", c.Timeout))
	}
	if c.MaxStreams < 1 {
		errs = append(errs, fmt.Errorf("max_streams: %d: want at least 1", c.MaxStreams))
	}
	return errors.Join(errs...)
}
