package gateway

import (
	"errors"
	"fmt"
	"time"
)

// Config of the gateway.
type Config struct {
	// MaxInFlight bounds the requests in flight per replica; beyond it the gateway answers 503.
	MaxInFlight int `yaml:"max_in_flight"`
	// MaxBodyBytes bounds a request's body.
	MaxBodyBytes int64 `yaml:"max_body_bytes"`
	// RetryAfter is what a client is told to wait when all replicas are full, whole seconds.
	RetryAfter time.Duration `yaml:"retry_after"`
}

// Default is the configuration of an embedded run.
func Default() Config {
	return Config{MaxInFlight: 256, MaxBodyBytes: 32 << 20, RetryAfter: time.Second}
}

// Validate returns every problem of the configuration, each with its path.
func (c Config) Validate() error {
	var errs []error
	if c.MaxInFlight < 1 {
		errs = append(errs, fmt.Errorf("max_in_flight: %d: want at least 1", c.MaxInFlight))
	}
	if c.MaxBodyBytes < 1024 {
		errs = append(errs, fmt.Errorf("max_body_bytes: %d: want at least 1024", c.MaxBodyBytes))
	}
	if c.RetryAfter < time.Second {
		errs = append(errs, fmt.Errorf("retry_after: %v: want at least 1s", c.RetryAfter))
	}
	return errors.Join(errs...)
}
