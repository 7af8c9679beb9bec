// Package webhook tells other systems what happens to experiments: every command that was applied, signed, in order,
// again and again until the receiver has it or the attempts are used up.
//
// The control log is the queue. A delivery is a place in an experiment's trail, so nothing is lost while a receiver or
// this process is down, and memory holds no more than what is being sent. What each endpoint has is kept in a file;
// without it (or after a crash between an answer and the file) a delivery comes again under the same id, by which
// receivers tell repetitions.
package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"ctrloop/internal/artifact"
	"ctrloop/schemas/control"
)

// Headers of a delivery.
const (
	HeaderSignature = "X-Ctrloop-Signature" // t=<Unix seconds>,v1=<hex HMAC-SHA256 of "<t>.<body>">
	HeaderDelivery  = "X-Ctrloop-Delivery"  // id: the same at every attempt and replay
	HeaderEvent     = "X-Ctrloop-Event"     // type of the command
)

// Payload is the body of a delivery. It depends on the command alone, so a replay sends the same bytes.
type Payload struct {
	Delivery   string `json:"delivery"`
	Experiment string `json:"experiment"`
	Logical    string `json:"logical"`
	Control    string `json:"control"` // model versions
	Treatment  string `json:"treatment"`
	control.Change
}

// ErrUnknownEndpoint is returned for an endpoint that is not configured.
var ErrUnknownEndpoint = errors.New("no such webhook endpoint")

// Status is what an endpoint has and lacks.
type Status struct {
	Name    string    `json:"name"`
	Pending int       `json:"pending"` // deliveries that wait
	GaveUp  []Failure `json:"gave_up"` // the newest ones that the receiver never took; replay them
}

// Failure is a delivery that was given up.
type Failure struct {
	Delivery   string    `json:"delivery"`
	Experiment string    `json:"experiment"`
	Version    int64     `json:"version"`
	Attempts   int       `json:"attempts"`
	Error      string    `json:"error"`
	Time       time.Time `json:"time"`
}

// maxFailures bounds the failures that are remembered of an endpoint; the log line and the metric keep count.
const maxFailures = 100

// place is what an endpoint has got.
type place struct {
	Versions map[string]int64 `json:"versions"` // of each experiment: its last change that is settled
	GaveUp   []Failure        `json:"gave_up,omitempty"`
}

// Dispatcher sends. Safe for concurrent use.
type Dispatcher struct {
	cfg    Config
	log    control.Reader
	file   string
	client *http.Client
	logger zerolog.Logger
	m      *metrics
	now    func() time.Time

	mu     sync.Mutex
	places map[string]*place
	wake   map[string]chan struct{} // of an endpoint: something is to be sent again
}

type metrics struct {
	deliveries *prometheus.CounterVec
	pending    *prometheus.GaugeVec
}

// New reads what was delivered from file, which Run keeps; empty: nothing is kept over a restart. An endpoint that is
// new starts with what happens from now on. reg may be nil, transport too.
func New(
	cfg Config,
	log control.Reader,
	file string,
	transport http.RoundTripper,
	logger zerolog.Logger,
	reg prometheus.Registerer,
) (*Dispatcher, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	d := &Dispatcher{
		cfg: cfg, log: log, file: file, logger: logger, now: time.Now, places: map[string]*place{}, wake: map[string]chan struct{}{},
		client: &http.Client{
			Transport: transport, Timeout: cfg.Timeout,
			// A signed body goes where it was configured to go, nowhere else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		m: &metrics{
			deliveries: prometheus.NewCounterVec(
				prometheus.CounterOpts{
					Name: "ctrloop_webhook_deliveries_total",
					Help: "Attempts to deliver a webhook, by endpoint and result: delivered, retried, gave_up.",
				},
				[]string{"endpoint", "result"},
			),
			pending: prometheus.NewGaugeVec(
				prometheus.GaugeOpts{
					Name: "ctrloop_webhook_pending_deliveries",
					Help: "Deliveries that wait, by endpoint; those beyond the queue's bound wait in the control log and are not counted.",
				},
				[]string{"endpoint"},
			),
		},
	}
	if reg != nil {
		reg.MustRegister(d.m.deliveries, d.m.pending)
	}
	if err := d.load(); err != nil {
		return nil, err
	}
	st := log.State()
	for _, e := range cfg.Endpoints {
		d.wake[e.Name] = make(chan struct{}, 1)
		if p := d.places[e.Name]; p == nil || p.Versions == nil {
			d.places[e.Name] = &place{Versions: versions(st)}
		}
	}
	return d, nil
}

func versions(st *control.State) map[string]int64 {
	out := map[string]int64{}
	for id, x := range st.Experiments {
		if n := len(x.Trail); n > 0 {
			out[id] = x.Trail[n-1].Version
		}
	}
	return out
}

func (d *Dispatcher) load() error {
	if d.file == "" {
		return nil
	}
	raw, err := os.ReadFile(d.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &d.places)
	}
	if err != nil {
		return fmt.Errorf("webhooks: what was delivered: %w (delete the file to begin with what happens from now on)", err)
	}
	return nil
}

// save writes the file whole or not at all. The lock is held.
func (d *Dispatcher) save() error {
	if d.file == "" {
		return nil
	}
	raw, err := json.Marshal(d.places)
	if err != nil {
		return err
	}
	return artifact.WriteFile(d.file, raw, 0o600)
}

// Run sends until ctx ends. Endpoints do not wait for each other.
func (d *Dispatcher) Run(ctx context.Context) error {
	if len(d.cfg.Endpoints) == 0 {
		<-ctx.Done()
		return nil
	}
	d.mu.Lock()
	err := d.save() // an endpoint that is new must be known as such after a crash
	d.mu.Unlock()
	if err != nil {
		return fmt.Errorf("webhooks: keep what was delivered: %w", err)
	}
	var g errgroup.Group
	for _, e := range d.cfg.Endpoints {
		g.Go(func() error { d.serve(ctx, e); return nil })
	}
	return g.Wait()
}

func (d *Dispatcher) serve(ctx context.Context, e Endpoint) {
	for ctx.Err() == nil {
		changed := d.log.Changed()
		queue := d.queue(e)
		d.m.pending.WithLabelValues(e.Name).Set(float64(len(queue)))
		if len(queue) > 0 {
			d.deliver(ctx, e, queue[0])
			continue
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-d.wake[e.Name]:
		}
	}
}

// Replay sends an experiment's changes from a version on again, to one endpoint or (empty name) to all. It returns how
// many deliveries that makes.
func (d *Dispatcher) Replay(endpoint, experiment string, from int64) (int, error) {
	x := d.log.State().Experiments[experiment]
	if x == nil {
		return 0, fmt.Errorf("no experiment %q", experiment)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	found := false
	for _, e := range d.cfg.Endpoints {
		if endpoint != "" && endpoint != e.Name {
			continue
		}
		found = true
		p := d.places[e.Name]
		p.Versions[experiment] = min(p.Versions[experiment], max(from, 1)-1)
		for _, c := range x.Trail {
			if c.Version >= from && (len(e.Events) == 0 || slices.Contains(e.Events, c.Type)) {
				n++
			}
		}
		select {
		case d.wake[e.Name] <- struct{}{}:
		default: // it is awake
		}
	}
	if !found {
		return 0, fmt.Errorf("%w: %q", ErrUnknownEndpoint, endpoint)
	}
	return n, d.save()
}

// Status of every endpoint.
func (d *Dispatcher) Status() []Status {
	out := []Status{}
	for _, e := range d.cfg.Endpoints {
		queue := d.queue(e)
		d.mu.Lock()
		gone := slices.Clone(d.places[e.Name].GaveUp)
		d.mu.Unlock()
		pending := 0
		for _, v := range queue {
			if !v.silent {
				pending++
			}
		}
		if gone == nil {
			gone = []Failure{}
		}
		out = append(out, Status{Name: e.Name, Pending: pending, GaveUp: gone})
	}
	return out
}
