package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/access"
	"ctrloop/internal/httpapi"
	"ctrloop/internal/telemetry"
)

// logEvery is the pace of lines about a fault that repeats.
const logEvery = 10 * time.Second

// Service serves the page and its data.
type Service struct {
	cfg     Config
	source  Source
	limited *telemetry.Throttle
	metrics *metrics
	now     func() time.Time
	viewers viewers

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
	return &Service{cfg: cfg, source: source, limited: telemetry.NewThrottle(log, logEvery, time.Now), metrics: newMetrics(reg),
		now: time.Now}, nil
}

// Routes are the page and its data. Images are at the paths that the overview names.
func (s *Service) Routes() []httpapi.Route {
	page := assets()
	return []httpapi.Route{
		{Method: http.MethodGet, Path: "/{$}", Scope: access.Read, Handle: page},
		{Method: http.MethodGet, Path: "/assets/", Scope: access.Public, Handle: page}, // code, no data
		{Method: http.MethodGet, Path: "/api/overview", Scope: access.Read, Handle: s.overview},
		{Method: http.MethodGet, Path: "/api/live", Scope: access.Read, Handle: s.live},
	}
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
			s.limited.Event(zerolog.WarnLevel, "overview").Err(err).Msg("the overview could not be gathered")
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
	w.Header().Set("Cache-Control", "no-store")
	got := s.read(r.Context())
	if got.err != nil {
		httpapi.Fail(w, problem(got.err))
		return
	}
	httpapi.ReplyRaw(w, http.StatusOK, got.json)
}

func problem(err error) *httpapi.Error {
	return httpapi.Refuse(http.StatusServiceUnavailable,
		"the page keeps the last figures and shows their age; `ctrloop status` says which part is down", "%v", err)
}

// viewers bounds live streams. One more ends the oldest: streams that somebody opened and forgot shut out nobody.
type viewers struct {
	mu   sync.Mutex
	open []chan struct{} // oldest first
}

// join returns a channel that is closed when the stream must end, and whether another one has made place for it.
func (v *viewers) join(most int) (displaced chan struct{}, ended bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.open) >= most {
		close(v.open[0])
		v.open, ended = v.open[1:], true
	}
	displaced = make(chan struct{})
	v.open = append(v.open, displaced)
	return displaced, ended
}

func (v *viewers) leave(c chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.open = slices.DeleteFunc(v.open, func(o chan struct{}) bool { return o == c })
}

// live sends an overview at once and then with each new reading: server-sent events "overview" with the document,
// "problem" when it could not be gathered, "full" before it ends because newer viewers want the place.
func (s *Service) live(w http.ResponseWriter, r *http.Request) {
	displaced, ended := s.viewers.join(s.cfg.MaxStreams)
	if ended {
		s.metrics.displaced.Inc()
	}
	s.metrics.streams.Inc()
	defer func() { s.viewers.leave(displaced); s.metrics.streams.Dec() }()
	guard(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	// A viewer that does not read is dropped by the listener's write deadline.
	send := func(name string, data []byte) bool {
		_, err := fmt.Fprintf(w, "event: %s\nretry: 2000\ndata: %s\n\n", name, data)
		return err == nil && http.NewResponseController(w).Flush() == nil
	}
	tick := time.NewTicker(s.cfg.Refresh)
	defer tick.Stop()
	sent := int64(0)
	for {
		got := s.read(r.Context())
		switch {
		case got.err != nil:
			raw, _ := json.Marshal(map[string]any{"error": problem(got.err)}) // strings always encode
			if !send("problem", raw) {
				return
			}
		case got.seq != sent:
			if !send("overview", got.json) {
				return
			}
			sent = got.seq
		}
		select {
		case <-r.Context().Done():
			return
		case <-httpapi.Stopping(r.Context()):
			return
		case <-displaced:
			send("full", []byte("{}"))
			return
		case <-tick.C:
		}
	}
}
