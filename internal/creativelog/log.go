// Package creativelog keeps every creative in memory: it follows creatives.v1, whose last record of a
// key is the creative's state, and publishes to it.
package creativelog

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
	"ctrloop/internal/telemetry"
	"ctrloop/schemas"
)

// Log is the open log. All methods are safe for concurrent use.
type Log struct {
	log      zerolog.Logger
	producer *stream.Producer
	replica  *stream.Replica
	known    prometheus.Gauge
	skipped  prometheus.Counter

	mu        sync.RWMutex
	byID      map[string]schemas.Creative
	byProduct map[string][]string // ids, ascending by creation, then id
}

// Open connects, reads the topic to its present end and follows it until Close. The topic must exist.
func Open(ctx context.Context, c stream.Config, log zerolog.Logger, reg prometheus.Registerer) (*Log, error) {
	producer, err := stream.NewProducer(c, stream.ProducerConfig{})
	if err != nil {
		return nil, fmt.Errorf("open creative log: %w", err)
	}
	l := &Log{
		log: log, producer: producer, byID: map[string]schemas.Creative{}, byProduct: map[string][]string{},
		known: prometheus.NewGauge(prometheus.GaugeOpts{Name: "ctrloop_creativelog_known_creatives", Help: "Creatives in memory."}),
		skipped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ctrloop_creativelog_unreadable_records_total", Help: "Records of creatives.v1 that are not a creative.",
		}),
	}
	if reg != nil {
		reg.MustRegister(l.known, l.skipped)
	}
	l.replica, err = stream.OpenReplica(ctx, c, schemas.TopicCreatives, -1, l.fold, l.report)
	if err != nil {
		producer.Close()
		return nil, fmt.Errorf("open creative log: %w", err)
	}
	return l, nil
}

// Reports has the log say whether it can be followed.
func (l *Log) Reports(w *telemetry.Work) { l.replica.Reports(w) }

// Wait returns nil when ctx is done, and before that only when the log can no longer be followed.
func (l *Log) Wait(ctx context.Context) error { return l.replica.Wait(ctx) }

func (l *Log) report(err error) {
	if errors.Is(err, stream.ErrDataLoss) {
		l.log.Error().Err(err).Msg("creative log: cannot be followed any more")
		return
	}
	l.log.Warn().Err(err).Msg("creative log: reading again")
}

func (l *Log) fold(r *stream.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := string(r.Key)
	var c schemas.Creative
	switch {
	case len(r.Value) == 0: // a tombstone
		l.forget(id)
	case json.Unmarshal(r.Value, &c) != nil || c.ID != id:
		l.skipped.Inc()
		l.log.Error().Int64("offset", r.Offset).Str("key", id).Msg("creative log: skipped a record that is not the creative of its key")
	default:
		l.forget(id)
		l.byID[id] = c
		ids := l.byProduct[c.Product]
		at, _ := slices.BinarySearchFunc(ids, c, func(have string, c schemas.Creative) int { return order(l.byID[have], c) })
		l.byProduct[c.Product] = slices.Insert(ids, at, id)
	}
	l.known.Set(float64(len(l.byID)))
	return nil
}

func order(a, b schemas.Creative) int {
	return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
}

func (l *Log) forget(id string) {
	old, ok := l.byID[id]
	if !ok {
		return
	}
	delete(l.byID, id)
	ids := slices.DeleteFunc(l.byProduct[old.Product], func(have string) bool { return have == id })
	if len(ids) == 0 {
		delete(l.byProduct, old.Product)
	} else {
		l.byProduct[old.Product] = ids
	}
}

// Get returns one creative.
func (l *Log) Get(id string) (schemas.Creative, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	c, ok := l.byID[id]
	return c, ok
}

// OfProduct returns a product's creatives, oldest first, blocked ones included.
func (l *Log) OfProduct(product string) []schemas.Creative {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.collect(l.byProduct[product])
}

// All returns every creative, by product, then oldest first.
func (l *Log) All() []schemas.Creative {
	l.mu.RLock()
	defer l.mu.RUnlock()
	out := make([]schemas.Creative, 0, len(l.byID))
	for _, c := range l.byID {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b schemas.Creative) int { return cmp.Or(cmp.Compare(a.Product, b.Product), order(a, b)) })
	return out
}

func (l *Log) collect(ids []string) []schemas.Creative {
	out := make([]schemas.Creative, len(ids))
	for i, id := range ids {
		out[i] = l.byID[id]
	}
	return out
}

// Len is the number of creatives.
func (l *Log) Len() int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return len(l.byID)
}

// Changed returns a channel that is closed when a creative next changes. To miss nothing, take the
// channel first and then read.
func (l *Log) Changed() <-chan struct{} { return l.replica.Changed() }

// Done returns a channel that is closed when the log is not followed any more; Err then says why.
func (l *Log) Done() <-chan struct{} { return l.replica.Done() }

// Err is why this process does not see new creatives any more; nil: it does.
func (l *Log) Err() error {
	if err := l.replica.Lost(); err != nil {
		return fmt.Errorf("creatives are not followed any more, restart: %w", err)
	}
	return nil
}

// Publish writes creatives and waits until this process sees them.
func (l *Log) Publish(ctx context.Context, cs ...schemas.Creative) error {
	rs := make([]*stream.Record, len(cs))
	for i, c := range cs {
		if c.ID == "" || c.Product == "" {
			return fmt.Errorf("publish creative %d of %d: id and product are required", i, len(cs))
		}
		value, err := json.Marshal(c)
		if err != nil {
			return fmt.Errorf("publish creative %s: %w", c.ID, err)
		}
		rs[i] = &stream.Record{Topic: schemas.TopicCreatives, Key: []byte(c.ID), Value: value}
	}
	if err := l.producer.Produce(ctx, rs...); err != nil {
		return fmt.Errorf("publish creatives: %w", err)
	}
	last := int64(-1)
	for _, r := range rs {
		last = max(last, r.Offset)
	}
	if err := l.replica.WaitFor(ctx, last); err != nil {
		return fmt.Errorf("publish creatives: written, not seen yet: %w", err)
	}
	return nil
}

// Close stops following; what is in memory stays readable.
func (l *Log) Close() {
	l.replica.Close()
	l.producer.Close()
}
