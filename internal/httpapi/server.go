package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/telemetry"
)

// Limits bound what clients may take of a listener. They are the same for all listeners of a process.
type Limits struct {
	// MaxConnections of one listener. When one more comes, the one that has been idle the longest is closed; where none is
	// idle, the new one is.
	MaxConnections int `yaml:"max_connections"`
	// MaxConnectionsPerAddress bounds, in the same way, those of one address (IPv6: of one /64).
	MaxConnectionsPerAddress int `yaml:"max_connections_per_address"`
	// HeaderTimeout bounds a request's header, from its first byte.
	HeaderTimeout time.Duration `yaml:"header_timeout"`
	// BodyTimeout bounds a whole body, BodyPause the time in which nothing of it comes.
	BodyTimeout time.Duration `yaml:"body_timeout"`
	BodyPause   time.Duration `yaml:"body_pause"`
	// MaxBodiesBytes bounds the bodies that a listener holds at one time, all clients together; beyond it the answer is
	// 429. The edge has a bound of its own (ingest.edge.max_in_flight_bytes), on decompressed bytes.
	MaxBodiesBytes int64 `yaml:"max_bodies_bytes"`
	// WriteTimeout bounds how long a client may leave 256 KiB of an answer, or its end, unread.
	WriteTimeout time.Duration `yaml:"write_timeout"`
	// IdleTimeout is how long a connection is kept between two requests.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
	// StopGrace is how long a stop waits for requests in progress.
	StopGrace time.Duration `yaml:"stop_grace"`
}

// DefaultLimits suit a machine with some memory to spare: connections cost about 10 KB each.
func DefaultLimits() Limits {
	return Limits{
		MaxConnections: 8192, MaxConnectionsPerAddress: 2048, HeaderTimeout: 10 * time.Second, BodyTimeout: time.Minute,
		BodyPause: 10 * time.Second, MaxBodiesBytes: 256 << 20, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		StopGrace: 5 * time.Second,
	}
}

// Validate returns every problem of the section.
func (l Limits) Validate() error {
	var errs []error
	if l.MaxConnections < 1 {
		errs = append(errs, fmt.Errorf("max_connections: %d: want at least 1", l.MaxConnections))
	}
	if l.MaxConnectionsPerAddress < 1 {
		errs = append(errs, fmt.Errorf("max_connections_per_address: %d: want at least 1", l.MaxConnectionsPerAddress))
	}
	if l.MaxBodiesBytes < 1<<20 {
		errs = append(errs, fmt.Errorf("max_bodies_bytes: %d: want at least 1 MiB", l.MaxBodiesBytes))
	}
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"header_timeout", l.HeaderTimeout},
		{"body_timeout", l.BodyTimeout},
		{"body_pause", l.BodyPause},
		{"write_timeout", l.WriteTimeout},
		{"idle_timeout", l.IdleTimeout},
		{"stop_grace", l.StopGrace},
	} {
		if d.value <= 0 {
			errs = append(errs, fmt.Errorf("%s: %v: want more than 0", d.key, d.value))
		}
	}
	return errors.Join(errs...)
}

// Kit makes the listeners of a process.
type Kit struct {
	limits  Limits
	auth    Auth
	who     []Authenticator
	log     zerolog.Logger
	limited *telemetry.Throttle
	metrics *metrics
}

// logEvery is the pace of lines about clients that are refused, per listener and reason.
const logEvery = 10 * time.Second

// New makes a kit. reg may be nil.
func New(limits Limits, auth Auth, log zerolog.Logger, reg prometheus.Registerer, who ...Authenticator) (*Kit, error) {
	if err := errors.Join(limits.Validate(), auth.Validate()); err != nil {
		return nil, fmt.Errorf("listeners: %w", err)
	}
	log = log.With().Str("component", "http").Logger()
	return &Kit{
		limits: limits, auth: auth, who: who, log: log, limited: telemetry.NewThrottle(log, logEvery, time.Now), metrics: newMetrics(reg),
	}, nil
}

// Server is one listener.
type Server struct {
	name     string
	limits   Limits
	listener *boundedListener
	http     *http.Server
	log      zerolog.Logger
	stopping chan struct{}
}

// Listen opens a listener. It refuses an address beyond loopback while authentication is off. Serving starts with Run.
func (k *Kit) Listen(name, address string, routes ...Route) (*Server, error) {
	if err := k.auth.CheckAddress(address); err != nil {
		return nil, fmt.Errorf("listener %s: %w", name, err)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listener %s: %w", name, err)
	}
	s, err := k.serve(name, l, routes)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return s, nil
}

// serve builds a server over an open listener.
func (k *Kit) serve(name string, l net.Listener, routes []Route) (*Server, error) {
	host, _, err := net.SplitHostPort(l.Addr().String())
	loopback := err == nil && IsLoopback(host)
	if !loopback && !k.auth.Required { // localhost may be another address than one thinks
		return nil, fmt.Errorf("listener %s: %w", name, k.auth.CheckAddress(l.Addr().String()))
	}
	d, err := newDoor(k.auth, loopback, time.Now, k.who)
	if err != nil {
		return nil, fmt.Errorf("listener %s: %w", name, err)
	}
	s := &Server{name: name, limits: k.limits, log: k.log.With().Str("listener", name).Logger(), stopping: make(chan struct{})}
	refused := func(reason string) {
		k.metrics.refused.WithLabelValues(name, reason).Inc()
		k.limited.Event(zerolog.WarnLevel, name+" "+reason).Str("listener", name).Str("reason", reason).Msg("a client was refused")
	}
	s.listener = newBoundedListener(l, k.limits, func() { refused("connections") }, k.metrics.connections.WithLabelValues(name))
	entry := &entry{
		door: d, limits: k.limits, bodies: NewBudget(k.limits.MaxBodiesBytes), stopping: s.stopping, refused: refused,
		bug: func(path string, what any, stack []byte) {
			k.metrics.refused.WithLabelValues(name, "panic").Inc()
			k.limited.Event(zerolog.ErrorLevel, name+" panic").Str("listener", name).Str("path", path).Interface("panic", what).
				Bytes("stack", stack).Msg("a handler panicked: a bug")
		},
	}
	if entry.mux, err = newMux(entry.wrap, routes); err != nil {
		return nil, fmt.Errorf("listener %s: %w", name, err)
	}
	k.metrics.bodies(name, entry.bodies)
	s.http = &http.Server{
		Handler: entry, ReadHeaderTimeout: k.limits.HeaderTimeout, IdleTimeout: k.limits.IdleTimeout, MaxHeaderBytes: 64 << 10,
		ConnState: s.listener.state, ErrorLog: newErrorLog(k.limited, name),
	}
	return s, nil
}

// Addr is the address listened on, host:port.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Run serves until ctx is done, and then waits a while for requests in progress; streams end by themselves (Stopping).
func (s *Server) Run(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() { failed <- s.http.Serve(s.listener) }()
	s.log.Info().Str("address", s.Addr()).Msg("listening")
	select {
	case err := <-failed:
		return fmt.Errorf("listener %s: %w", s.name, err)
	case <-ctx.Done():
	}
	close(s.stopping)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.limits.StopGrace)
	defer cancel()
	if err := s.http.Shutdown(grace); err != nil {
		_ = s.http.Close() // requests that do not end do not hold up the stop
	}
	return nil
}

// Close gives up a listener that has not been run.
func (s *Server) Close() error { return s.listener.Close() }
