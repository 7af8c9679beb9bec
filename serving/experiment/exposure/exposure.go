// Package exposure records which units met which arm, once per unit and day, for callers that have no impressions of
// their own: other services that ask through the OpenFeature provider.
//
// An exposure is a key (experiment, unit, day, variant), and the table keeps one row per key. Remembering what was
// sent only saves traffic: memory is bounded, and after a restart or an eviction a repetition changes nothing.
package exposure

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// Exposure is a unit that met a variant.
type Exposure struct {
	Experiment string    `json:"experiment"`
	Unit       string    `json:"unit"`
	Variant    string    `json:"variant"`
	Time       time.Time `json:"time"`
}

// day of the exposure, UTC.
func (e Exposure) day() int64 { return e.Time.Unix() / 86400 }

type key struct {
	experiment, unit string
	day              int64
}

// Dedup says which exposures are new. It remembers at least the limit newest units and at most twice as many. Not safe
// for concurrent use.
type Dedup struct {
	limit      int
	young, old map[key]string // the first variant of the unit and day
}

// NewDedup remembers at least limit units.
func NewDedup(limit int) *Dedup {
	return &Dedup{limit: max(limit, 1), young: map[key]string{}}
}

// First says whether the exposure has not been seen (as far as memory goes), and whether its unit met another variant
// of the experiment on that day: assignment is sticky, so that is a fault, or somebody's override.
func (d *Dedup) First(e Exposure) (first, multiple bool) {
	k := key{e.Experiment, e.Unit, e.day()}
	seen, ok := d.young[k]
	if !ok {
		if seen, ok = d.old[k]; ok {
			d.remember(k, seen)
		}
	}
	if !ok {
		d.remember(k, e.Variant)
		return true, false
	}
	return seen != e.Variant, seen != e.Variant
}

// Forget makes the exposure's unit new again for that day.
func (d *Dedup) Forget(e Exposure) {
	k := key{e.Experiment, e.Unit, e.day()}
	delete(d.young, k)
	delete(d.old, k)
}

func (d *Dedup) remember(k key, variant string) {
	if len(d.young) >= d.limit {
		d.young, d.old = make(map[key]string, d.limit), d.young
	}
	d.young[k] = variant
}

// Sink keeps exposures. The same one may come again.
type Sink interface {
	Expose(ctx context.Context, es []Exposure) error
}

// Config of a logger.
type Config struct {
	// Units that are remembered at least, so that they are not sent twice a day; about 150 bytes each, twice as many
	// at most.
	Units int `yaml:"units"`
	// Queue bounds the exposures that wait; more are dropped and counted.
	Queue int `yaml:"queue"`
	// Batch is the most that is sent at once.
	Batch int `yaml:"batch"`
	// Interval between two batches that are not full, wall clock.
	Interval time.Duration `yaml:"interval"`
}

// Default remembers a hundred thousand units.
func Default() Config {
	return Config{Units: 100_000, Queue: 10_000, Batch: 1000, Interval: time.Second}
}

// Validate returns the first problem.
func (c Config) Validate() error {
	if c.Units < 1 || c.Queue < 1 || c.Batch < 1 || c.Interval <= 0 {
		return fmt.Errorf("units %d, queue %d, batch %d, interval %v: want all above 0", c.Units, c.Queue, c.Batch, c.Interval)
	}
	return nil
}

// Logger sends what is new. Expose never waits. Safe for concurrent use.
type Logger struct {
	cfg   Config
	sink  Sink
	log   zerolog.Logger
	m     metrics
	queue chan Exposure

	mu    sync.Mutex
	dedup *Dedup
}

type metrics struct {
	exposures *prometheus.CounterVec
	multiple  prometheus.Counter
}

// NewLogger checks the configuration; reg may be nil.
func NewLogger(cfg Config, sink Sink, log zerolog.Logger, reg prometheus.Registerer) (*Logger, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	l := &Logger{cfg: cfg, sink: sink, log: log, queue: make(chan Exposure, cfg.Queue), dedup: NewDedup(cfg.Units), m: metrics{
		exposures: prometheus.NewCounterVec(
			prometheus.CounterOpts{
				Name: "ctrloop_exposure_exposures_total",
				Help: "Exposures by what became of them: sent, repeated, dropped (the queue was full), failed (the sink refused them at the end).",
			},
			[]string{"result"},
		),
		multiple: prometheus.NewCounter(
			prometheus.CounterOpts{
				Name: "ctrloop_exposure_multiple_total",
				Help: "Units that met more than one variant of an experiment on one day. Should stand still.",
			},
		),
	}}
	if reg != nil {
		reg.MustRegister(l.m.exposures, l.m.multiple)
	}
	return l, nil
}

// Expose takes note of an exposure.
func (l *Logger) Expose(e Exposure) {
	l.mu.Lock()
	first, multiple := l.dedup.First(e)
	l.mu.Unlock()
	if multiple {
		l.m.multiple.Inc()
	}
	if !first {
		l.m.exposures.WithLabelValues("repeated").Inc()
		return
	}
	select {
	case l.queue <- e:
	default:
		l.m.exposures.WithLabelValues("dropped").Inc()
		l.mu.Lock()
		l.dedup.Forget(e) // the unit's next exposure is as good
		l.mu.Unlock()
	}
}

// Run sends until ctx ends, and then once more what waits.
func (l *Logger) Run(ctx context.Context) error {
	tick := time.NewTicker(l.cfg.Interval)
	defer tick.Stop()
	var batch []Exposure
	send := func(ctx context.Context) {
		if len(batch) == 0 {
			return
		}
		if err := l.sink.Expose(ctx, batch); err != nil {
			l.log.Warn().Err(err).Int("exposures", len(batch)).Msg("exposures could not be kept; trying again")
			return
		}
		l.m.exposures.WithLabelValues("sent").Add(float64(len(batch)))
		batch = batch[:0]
	}
	for {
		in := l.queue
		if len(batch) >= l.cfg.Batch {
			in = nil // the rest waits in the queue until the sink takes these
		}
		select {
		case e := <-in:
			if batch = append(batch, e); len(batch) == l.cfg.Batch {
				send(ctx)
			}
		case <-tick.C:
			send(ctx)
		case <-ctx.Done():
			for len(l.queue) > 0 {
				batch = append(batch, <-l.queue)
			}
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			send(last)
			l.m.exposures.WithLabelValues("failed").Add(float64(len(batch)))
			return nil
		}
	}
}
