package webhook

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"ctrloop/internal/config"
	"ctrloop/schemas/control"
)

// Config of webhooks. No endpoints: nothing is sent.
type Config struct {
	// Endpoints that are told of what happens to experiments.
	Endpoints []Endpoint `yaml:"endpoints"`
	// Timeout of one attempt, wall clock.
	Timeout time.Duration `yaml:"timeout"`
	// Attempts at a delivery before it is given up; an answer of 4xx other than 408, 425 and 429 is final at once.
	Attempts int `yaml:"attempts"`
	// Backoff before the second attempt; doubles with each, up to max_backoff.
	Backoff time.Duration `yaml:"backoff"`
	// MaxBackoff between two attempts.
	MaxBackoff time.Duration `yaml:"max_backoff"`
	// Queue bounds the deliveries that are held for an endpoint; more wait in the control log.
	Queue int `yaml:"queue"`
}

// Endpoint is a receiver.
type Endpoint struct {
	// Name in logs, metrics and replays.
	Name string `yaml:"name"`
	// URL that takes POST requests, http or https.
	URL string `yaml:"url"`
	// Secret of the HMAC-SHA256 signature; at least 16 bytes.
	Secret config.Secret `yaml:"secret"`
	// Events to send, e.g. experiment.decided; empty: all.
	Events []control.Type `yaml:"events"`
}

// Default sends nothing; what it would send it would try for about ten minutes.
func Default() Config {
	return Config{Timeout: 10 * time.Second, Attempts: 12, Backoff: time.Second, MaxBackoff: 2 * time.Minute, Queue: 1000}
}

// types that a trail can have.
var types = []control.Type{
	control.ExperimentCreated, control.ExperimentStarted, control.ExperimentStepped, control.ExperimentPaused,
	control.ExperimentResumed, control.ExperimentForced, control.ExperimentDecided,
}

// Validate returns every problem, each with its path.
func (c Config) Validate() error {
	var errs []error
	bad := func(path, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...)))
	}
	seen := map[string]bool{}
	for i, e := range c.Endpoints {
		at := fmt.Sprintf("endpoints[%d].", i)
		if e.Name == "" || seen[e.Name] {
			bad(at+"name", "%q: want a name, each once", e.Name)
		}
		seen[e.Name] = true
		if u, err := url.Parse(e.URL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			bad(at+"url", "want http://... or https://...")
		}
		if len(e.Secret.Reveal()) < 16 {
			bad(at+"secret", "want at least 16 bytes")
		}
		for _, t := range e.Events {
			if !slices.Contains(types, t) {
				bad(at+"events", "%q: want some of %v", t, types)
			}
		}
	}
	if c.Timeout <= 0 {
		bad("timeout", "%v: want more than 0", c.Timeout)
	}
	if c.Attempts < 1 {
		bad("attempts", "%d: want at least 1", c.Attempts)
	}
	if c.Backoff <= 0 || c.MaxBackoff < c.Backoff {
		bad("backoff", "%v, max_backoff %v: want more than 0, and max_backoff not below it", c.Backoff, c.MaxBackoff)
	}
	if c.Queue < 1 {
		bad("queue", "%d: want at least 1", c.Queue)
	}
	return errors.Join(errs...)
}
