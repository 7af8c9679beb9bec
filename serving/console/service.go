package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// Service serves the page and its data.
type Service struct {
	cfg     Config
	source  Source
	log     zerolog.Logger
	metrics *metrics
	now     func() time.Time
	streams chan struct{} // a slot per live viewer
	stop    chan struct{} // closed when Run ends, so that live streams do not hold up a graceful stop
	stopped sync.Once

	mu   sync.Mutex // held while gathering: viewers wait for one reading instead of making one each
	last reading
}

// reading is one overview in the form in which it is sent.
type reading struct {
	at   time.Time // when it was gathered or failed
	seq  int64     // grows with each reading that went well
	json []byte
	err  error // of the last attempt; json is then that of an earlier one, or nil
}

// New checks the configuration and registers the metrics; reg may be nil.
func New(cfg Config, source Source, log zerolog.Logger, reg prometheus.Registerer) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	if source == nil {
		return nil, errors.New("console: a Source must be given")
	}
	return &Service{cfg: cfg, source: source, log: log, metrics: newMetrics(reg), now: time.Now,
		streams: make(chan struct{}, cfg.MaxStreams), stop: make(chan struct{})}, nil
}

// Run waits for ctx and then ends the live streams, which would otherwise hold up a server's graceful stop.
func (s *Service) Run(ctx context.Context) error {
	<-ctx.Done()
	s.stopped.Do(func() { close(s.stop) })
	return nil
}

// Handler serves GET /, /assets/, /api/overview and /api/live. Images are at the paths that the overview names.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	page := assets()
	mux.Handle("GET /{$}", page)
	mux.Handle("GET /assets/", page)
	mux.HandleFunc("GET /api/overview", s.overview)
	mux.HandleFunc("GET /api/live", s.live)
	return mux
}

// read gives the overview, gathered anew when the last reading is older than Refresh.
func (s *Service) read(ctx context.Context) reading {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.now(); s.last.at.IsZero() || now.Sub(s.last.at) >= s.cfg.Refresh || now.Before(s.last.at) {
		// Not the viewer's context: who waits behind the lock gets this reading too, and a viewer who leaves
		// must not spoil it.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Timeout)
		defer cancel()
		start := time.Now()
		raw, err := s.gather(ctx)
		s.metrics.seconds.Observe(time.Since(start).Seconds())
		s.last.at, s.last.err = s.now(), err
		if err == nil {
			s.last.json = raw
			s.last.seq++
		} else {
			s.metrics.errors.Inc()
			s.log.Warn().Err(err).Msg("the overview could not be gathered")
		}
	}
	return s.last
}

func (s *Service) gather(ctx context.Context) ([]byte, error) {
	o, err := s.source.Overview(ctx)
	if err != nil {
		return nil, err
	}
	o.complete()
	raw, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode the overview: %w", err)
	}
	return raw, nil
}

func (s *Service) overview(w http.ResponseWriter, r *http.Request) {
	guard(w)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	got := s.read(r.Context())
	if got.err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write(problem(got.err))
		return
	}
	_, _ = w.Write(got.json)
}

func problem(err error) []byte {
	raw, _ := json.Marshal(
		map[string]string{
			"error": err.Error(),
			"hint":  "the page keeps the last figures and shows their age; `ctrloop status` says which part is down",
		},
	)
	return raw
}

// live sends an overview at once and then with each new reading: server-sent events "overview" with the document,
// "problem" when it could not be gathered.
func (s *Service) live(w http.ResponseWriter, r *http.Request) {
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams; s.metrics.streams.Dec() }()
		s.metrics.streams.Inc()
	default:
		s.metrics.refused.Inc()
		w.Header().Set("Retry-After", "10")
		http.Error(w, "too many live viewers (console.max_streams); the page polls instead", http.StatusServiceUnavailable)
		return
	}
	guard(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	out := http.NewResponseController(w)
	defer func() { _ = out.SetWriteDeadline(time.Time{}) }() // the connection may serve another request
	tick := time.NewTicker(s.cfg.Refresh)
	defer tick.Stop()
	sent := int64(0)
	for {
		got := s.read(r.Context())
		name, data := "overview", got.json
		if got.err != nil {
			name, data = "problem", problem(got.err)
		}
		if got.err != nil || got.seq != sent {
			// A viewer that does not read is dropped rather than waited for. Servers without deadlines
			// (tests) answer ErrNotSupported, which changes nothing.
			_ = out.SetWriteDeadline(time.Now().Add(s.cfg.Timeout))
			if _, err := fmt.Fprintf(w, "event: %s\nretry: 2000\ndata: %s\n\n", name, data); err != nil {
				return
			}
			if out.Flush() != nil {
				return
			}
			sent = got.seq
		}
		select {
		case <-r.Context().Done():
			return
		case <-s.stop:
			return
		case <-tick.C:
		}
	}
}
