package process

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// ServerConfig says how a server is kept running.
type ServerConfig struct {
	// ReadyTimeout is how long a started server may take to become ready before it is killed and restarted.
	ReadyTimeout time.Duration `yaml:"ready_timeout"`
	// ProbeInterval between two questions whether a starting server is ready.
	ProbeInterval time.Duration `yaml:"probe_interval"`
	// MinBackoff before the first restart; it doubles up to MaxBackoff while the server keeps failing, and
	// starts over after it has been ready.
	MinBackoff time.Duration `yaml:"min_backoff"`
	MaxBackoff time.Duration `yaml:"max_backoff"`
	// MaxFailures in a row (without having been ready in between) after which the supervisor gives up; 0 never.
	MaxFailures int `yaml:"max_failures"`
}

// DefaultServerConfig allows for a Python server that imports torch on a busy machine.
func DefaultServerConfig() ServerConfig {
	return ServerConfig{
		ReadyTimeout:  2 * time.Minute,
		ProbeInterval: 100 * time.Millisecond,
		MinBackoff:    time.Second,
		MaxBackoff:    30 * time.Second,
		MaxFailures:   5,
	}
}

// Validate returns every problem of the configuration.
func (c ServerConfig) Validate() error {
	var problems []error
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"ready_timeout", c.ReadyTimeout}, {"probe_interval", c.ProbeInterval},
		{"min_backoff", c.MinBackoff}, {"max_backoff", c.MaxBackoff},
	} {
		if d.value <= 0 {
			problems = append(problems, fmt.Errorf("%s: %v must be positive", d.name, d.value))
		}
	}
	if c.MinBackoff > c.MaxBackoff {
		problems = append(problems, fmt.Errorf("min_backoff: %v is above max_backoff %v", c.MinBackoff, c.MaxBackoff))
	}
	if c.MaxFailures < 0 {
		problems = append(problems, fmt.Errorf("max_failures: %d must not be negative", c.MaxFailures))
	}
	return errors.Join(problems...)
}

// Launch prepares one start of a server. It is called for every start, so that a restart can take another
// port: it returns what to run and how to ask whether it is ready (nil once it is). The context ends when the server is to stop.
type Launch func(ctx context.Context) (spec Spec, ready func(context.Context) error, err error)

// Server keeps one child process running: it probes until the child is ready, and restarts it with back-off
// when it ends.
type Server struct {
	name    string
	cfg     ServerConfig
	launch  Launch
	log     zerolog.Logger
	metrics *serverMetrics

	mu    sync.Mutex
	ready chan struct{} // closed while the server is ready
	pid   int
}

// NewServer returns a supervisor for the named server; Run starts it.
func NewServer(name string, cfg ServerConfig, launch Launch, log zerolog.Logger, reg prometheus.Registerer) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("server %s: %w", name, err)
	}
	return &Server{
		name: name, cfg: cfg, launch: launch, log: log.With().Str("server", name).Logger(),
		metrics: newServerMetrics(name, reg), ready: make(chan struct{}),
	}, nil
}

// Ready reports whether the server answers its probe since its last start.
func (s *Server) Ready() bool {
	select {
	case <-s.readyChan():
		return true
	default:
		return false
	}
}

// WaitReady blocks until the server is ready.
func (s *Server) WaitReady(ctx context.Context) error {
	select {
	case <-s.readyChan():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for server %s: %w", s.name, context.Cause(ctx))
	}
}

// PID of the running child, or 0.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pid
}

func (s *Server) readyChan() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready
}

// Run keeps the server running until ctx is done, then stops it and returns nil. It gives up with the last
// error after cfg.MaxFailures starts in a row that did not become ready.
func (s *Server) Run(ctx context.Context) error {
	backoff, failures := s.cfg.MinBackoff, 0
	for {
		wasReady, err := s.once(ctx)
		if ctx.Err() != nil {
			return nil // stopped on purpose: how the child took it is no error
		}
		if wasReady {
			backoff, failures = s.cfg.MinBackoff, 0
		} else {
			failures++
		}
		if err == nil {
			err = fmt.Errorf("process %s ended by itself with status 0", s.name)
		}
		if s.cfg.MaxFailures > 0 && failures >= s.cfg.MaxFailures {
			return fmt.Errorf("server %s did not become ready in %d starts: %w", s.name, failures, err)
		}
		s.metrics.restarts.Inc()
		s.log.Warn().Err(err).Dur("backoff_ms", backoff).Int("failures", failures).Msg("server ended, will restart")
		timer := time.NewTimer(backoff)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		backoff = min(2*backoff, s.cfg.MaxBackoff)
	}
}

// once runs the server from start to end.
func (s *Server) once(ctx context.Context) (wasReady bool, err error) {
	spec, probe, err := s.launch(ctx)
	if err != nil {
		return false, fmt.Errorf("prepare server %s: %w", s.name, err)
	}
	spec.Name = s.name
	begin := time.Now()
	c, err := start(spec, s.log)
	if err != nil {
		return false, err
	}
	s.setPID(c.cmd.Process.Pid)
	defer s.setPID(0)
	if err := s.probeUntilReady(ctx, c, probe); err != nil {
		c.stop()
		if ended := c.result(ctx); ended != nil {
			err = errors.Join(err, ended)
		}
		return false, err
	}
	s.log.Info().Dur("took_ms", time.Since(begin)).Int("pid", c.cmd.Process.Pid).Msg("server ready")
	s.setReady(true)
	defer s.setReady(false)
	select {
	case <-c.done:
	case <-ctx.Done():
		c.stop()
	}
	return true, c.result(ctx)
}

// probeUntilReady asks until the server answers, ends, or runs out of time.
func (s *Server) probeUntilReady(ctx context.Context, c *child, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ReadyTimeout)
	defer cancel()
	ticker := time.NewTicker(s.cfg.ProbeInterval)
	defer ticker.Stop()
	var refusal error // of the last probe that was answered, not cut short
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		var timeout interface{ Timeout() bool }
		if cut := errors.As(err, &timeout) && timeout.Timeout(); refusal == nil || !cut {
			refusal = err
		}
		select {
		case <-c.done:
			return fmt.Errorf("server %s ended before it was ready", s.name)
		case <-ctx.Done():
			return fmt.Errorf("server %s was not ready within %v: %w", s.name, s.cfg.ReadyTimeout, refusal)
		case <-ticker.C:
		}
	}
}

func (s *Server) setPID(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pid = pid
}

func (s *Server) setReady(ready bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ready {
		s.metrics.up.Set(1)
		close(s.ready)
		return
	}
	s.metrics.up.Set(0)
	s.ready = make(chan struct{})
}
