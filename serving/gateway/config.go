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
	// MaxRetries bounds how many other replicas a request is handed to when one is not there, is full or answers with
	// another version. A request that broke off after it was sent is not tried again.
	MaxRetries int `yaml:"max_retries"`
	// RetryShare bounds retries to this share of all requests, 0 to 1, beyond a reserve of ten.
	RetryShare float64 `yaml:"retry_share"`
	// AllowFields adds names to the fields that a request may have: an engine may break on one that it knows and we do not.
	AllowFields []string `yaml:"allow_fields"`
}

// Default is the configuration of an embedded run.
func Default() Config {
	return Config{MaxInFlight: 256, MaxBodyBytes: 32 << 20, RetryAfter: time.Second, MaxRetries: 3, RetryShare: 0.2}
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
	if c.MaxRetries < 0 || c.MaxRetries > 16 {
		errs = append(errs, fmt.Errorf("max_retries: %d: want 0 to 16", c.MaxRetries))
	}
	if !(c.RetryShare >= 0 && c.RetryShare <= 1) {
		errs = append(errs, fmt.Errorf("retry_share: %v: want 0 to 1", c.RetryShare))
	}
	return errors.Join(errs...)
}
