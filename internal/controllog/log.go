// Package controllog keeps this process's copy of the control plane: it follows control.v1 from its
// start and folds it into a control.State, and appends commands. Every process that opens the log holds
// the same state, later or sooner; nothing else is authoritative.
package controllog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
)

// Log is an open control log. All methods are safe for concurrent use.
type Log struct {
	log      zerolog.Logger
	metrics  metrics
	producer *stream.Producer
	replica  *stream.Replica

	mu       sync.Mutex
	state    *control.State // owned by the replica's fold
	snapshot *control.State // immutable copy, made when first asked for after a change
	waiting  map[string]chan error
}

// Open connects, reads the log to its present end and follows it until Close. The topic must exist.
func Open(ctx context.Context, c stream.Config, log zerolog.Logger, reg prometheus.Registerer) (*Log, error) {
	producer, err := stream.NewProducer(c, stream.ProducerConfig{})
	if err != nil {
		return nil, fmt.Errorf("open control log: %w", err)
	}
	l := &Log{log: log, metrics: newMetrics(reg), producer: producer, state: control.NewState(), waiting: map[string]chan error{}}
	l.replica, err = stream.OpenReplica(ctx, c, schemas.TopicControl, l.fold, l.report)
	if err != nil {
		producer.Close()
		return nil, fmt.Errorf("open control log: %w", err)
	}
	return l, nil
}

func (l *Log) report(err error) {
	if errors.Is(err, stream.ErrDataLoss) {
		l.log.Error().Err(err).Msg("control log: cannot be followed any more")
		return
	}
	l.log.Warn().Err(err).Msg("control log: reading again")
}

// fold applies one record. A record that cannot be read is skipped, the same in every process.
func (l *Log) fold(r *stream.Record) error {
	var e control.Event
	decodeErr := json.Unmarshal(r.Value, &e)
	l.mu.Lock()
	defer l.mu.Unlock()
	var rejection error
	if decodeErr != nil {
		l.state.Offset = r.Offset
		l.metrics.commands.WithLabelValues("unreadable").Inc()
		l.log.Error().Err(decodeErr).Int64("offset", r.Offset).Msg("control log: skipped a record that is not a command")
	} else if rejection = l.state.Apply(r.Offset, e); rejection != nil {
		l.metrics.commands.WithLabelValues("rejected").Inc()
	} else {
		l.metrics.commands.WithLabelValues("applied").Inc()
	}
	l.metrics.offset.Set(float64(r.Offset))
	if w, ok := l.waiting[e.ID]; ok && decodeErr == nil {
		w <- rejection
		delete(l.waiting, e.ID)
	}
	l.snapshot = nil
	return nil
}

// State is the state now. It is shared: do not change it.
func (l *Log) State() *control.State {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.snapshot == nil {
		l.snapshot = l.state.Clone()
	}
	return l.snapshot
}

// Wait returns nil when ctx is done, and before that only when the log can no longer be followed.
func (l *Log) Wait(ctx context.Context) error { return l.replica.Wait(ctx) }

// Changed returns a channel that is closed when the state next changes. To miss nothing, take the
// channel first and then State.
func (l *Log) Changed() <-chan struct{} { return l.replica.Changed() }

// Watch sends the state now and after every change, until ctx is done; a slow receiver skips states, not
// the last one.
func (l *Log) Watch(ctx context.Context) <-chan *control.State {
	out := make(chan *control.State)
	go func() {
		defer close(out)
		for {
			changed := l.Changed()
			select {
			case out <- l.State():
			case <-ctx.Done():
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			case <-l.replica.Done():
				return
			}
		}
	}()
	return out
}

// Append writes a command and waits until this process has folded it; State then shows its effect. The
// error is the fold's rejection (control.ErrConflict, control.ErrInvalid), or says that the outcome is
// unknown: the same event can then be appended again, its id makes that harmless.
func (l *Log) Append(ctx context.Context, e control.Event) error {
	if e.ID == "" {
		return fmt.Errorf("append %s: %w: empty id", e.Type, control.ErrInvalid)
	}
	value, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("append %s on %s: %w", e.Type, e.Entity, err)
	}
	folded := make(chan error, 1)
	l.mu.Lock()
	if l.waiting[e.ID] != nil {
		l.mu.Unlock()
		return fmt.Errorf("append %s on %s: %w: command %s is being appended already", e.Type, e.Entity, control.ErrInvalid, e.ID)
	}
	l.waiting[e.ID] = folded
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.waiting, e.ID)
	}()
	r := &stream.Record{Topic: schemas.TopicControl, Key: []byte(e.Entity), Value: value, Timestamp: e.Time}
	if err := l.producer.Produce(ctx, r); err != nil {
		return fmt.Errorf("append %s on %s: outcome unknown: %w", e.Type, e.Entity, err)
	}
	select {
	case err := <-folded:
		return err
	case <-ctx.Done():
		return fmt.Errorf("append %s on %s: written, outcome unknown: %w", e.Type, e.Entity, ctx.Err())
	case <-l.replica.Done():
		return fmt.Errorf("append %s on %s: written, outcome unknown: %w", e.Type, e.Entity, stream.ErrReplicaClosed)
	}
}

// Do appends a command made now with a fresh id; expect < 0 means that any version of the entity will do.
func (l *Log) Do(ctx context.Context, typ control.Type, entity string, expect int64, actor, note string, data any) error {
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("command id: %w", err)
	}
	e, err := control.NewEvent(id.String(), typ, entity, expect, actor, note, time.Now(), data)
	if err != nil {
		return err
	}
	return l.Append(ctx, e)
}

// Close stops following; State keeps its last value.
func (l *Log) Close() {
	l.replica.Close()
	l.producer.Close()
}
