// Package controllog keeps this process's copy of the control plane: it follows control.v1 from its
// start and folds it into a control.State, and appends commands. Every process that opens the log holds
// the same state, later or sooner; nothing else is authoritative.
package controllog

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
	"ctrloop/internal/telemetry"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
)

// Log is an open control log. All methods are safe for concurrent use.
type Log struct {
	log      zerolog.Logger
	metrics  metrics
	producer *stream.Producer
	replica  *stream.Replica

	beacon *stream.Beacon
	leases *Leases
	id     string          // of the topic
	open   context.Context // until Close
	close  context.CancelFunc
	// background are the leases and the snapshot that is being written.
	background sync.WaitGroup

	mu       sync.Mutex
	state    *control.State // owned by the replica's fold
	view     *control.State // immutable copy, made when first asked for after a change
	waiting  map[string]chan folded
	snapshot int64 // offset of the newest snapshot that this process knows of, -1: none
	writing  bool  // one is being written
}

var _ control.Log = (*Log)(nil)

// folded is what the fold has made of a command.
type folded struct {
	answer control.Answer
	err    error
}

// Options of a log. The zero value is right for a process of a cluster.
type Options struct {
	// Owner names the process in leases. Empty: host, process and a random part. A name that stays the same over restarts
	// takes its own leases over at once; it must never run twice at a time.
	Owner string
	// TTL is how long a holder of a lease may be silent before it loses it; 0: DefaultTTL.
	TTL time.Duration
}

// Open connects, reads the newest snapshot and the log from there to its present end, and follows it until Close. The
// topics must exist.
func Open(ctx context.Context, c stream.Config, opt Options, log zerolog.Logger, reg prometheus.Registerer) (*Log, error) {
	producer, err := stream.NewProducer(c, stream.ProducerConfig{})
	if err != nil {
		return nil, fmt.Errorf("open control log: %w", err)
	}
	beacon, err := stream.NewBeacon(c, schemas.TopicControl)
	if err != nil {
		producer.Close()
		return nil, fmt.Errorf("open control log: %w", err)
	}
	l := &Log{log: log, metrics: newMetrics(reg), producer: producer, beacon: beacon, waiting: map[string]chan folded{}}
	l.open, l.close = context.WithCancel(context.WithoutCancel(ctx))
	if err := l.read(ctx, c); err != nil {
		l.close()
		producer.Close()
		beacon.Close()
		return nil, fmt.Errorf("open control log: %w", err)
	}
	l.leases = NewLeases(l, beacon, cmp.Or(opt.Owner, processName()), cmp.Or(opt.TTL, DefaultTTL), log, reg)
	l.background.Go(func() { _ = l.leases.Run(l.open) })
	return l, nil
}

// read folds what there is and begins to follow.
func (l *Log) read(ctx context.Context, c stream.Config) (err error) {
	if l.state, err = l.begin(ctx, c); err != nil {
		return err
	}
	l.snapshot = l.state.Offset
	if l.replica, err = stream.OpenReplica(ctx, c, schemas.TopicControl, l.state.Offset+1, l.fold, l.report); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.snapshotDue() {
		l.writeSnapshot()
	}
	return nil
}

// processName is one that no other process has, now or later.
func processName() string {
	host, _ := os.Hostname() // it is for people; the random part makes it unique
	return fmt.Sprintf("%.100s-%d-%.8s", host, os.Getpid(), uuid.NewString())
}

// Reports has the log say whether it can be followed. A part that appends says itself whether that succeeds.
func (l *Log) Reports(w *telemetry.Work) { l.replica.Reports(w) }

// Hold makes a claim on a single-writer role, one in a process. It claims while its Run runs.
func (l *Log) Hold(role control.Role) *Holder { return l.leases.Hold(role) }

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
	if decodeErr != nil {
		l.state.Offset = r.Offset
		l.metrics.commands.WithLabelValues("unreadable").Inc()
		l.log.Error().Err(decodeErr).Int64("offset", r.Offset).Msg("control log: skipped a record that is not a command")
	} else {
		l.apply(r.Offset, e)
	}
	l.metrics.offset.Set(float64(r.Offset))
	l.view = nil
	return nil
}

// apply folds a command and tells who waits for it. The lock is held.
func (l *Log) apply(offset int64, e control.Event) {
	before := l.state.Behind
	answer, err := l.state.Apply(offset, e)
	outcome := string(answer)
	if err != nil {
		outcome = "rejected"
	}
	l.metrics.commands.WithLabelValues(outcome).Inc()
	if w, ok := l.waiting[e.ID]; ok {
		w <- folded{answer, err}
		delete(l.waiting, e.ID)
		if l.snapshotDue() { // by who wrote the command: one process, without a word
			l.writeSnapshot()
		}
	}
	if now := l.state.Behind; now != nil {
		l.metrics.behind.Set(float64(now.Commands))
		if before == nil {
			l.log.Error().Str("newer", now.String()).Msg("control log: this process is behind: it decides nothing and holds no role")
		}
	}
}

// State is the state now. It is shared: do not change it.
func (l *Log) State() *control.State {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.view == nil {
		l.view = l.state.View()
	}
	return l.view
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

// Append implements control.Log.
func (l *Log) Append(ctx context.Context, e control.Event) (control.Answer, error) {
	if e.ID == "" {
		return "", control.Reject(e, fmt.Errorf("%w: empty id", control.ErrInvalid))
	}
	value, err := json.Marshal(e)
	if err != nil {
		return "", fmt.Errorf("append %s on %s: %w", e.Type, e.Entity, err)
	}
	wait, err := l.await(e)
	if err != nil {
		return "", err
	}
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.waiting, e.ID)
	}()
	r := &stream.Record{Topic: schemas.TopicControl, Key: []byte(e.Entity), Value: value, Timestamp: e.Time}
	if err := l.producer.Produce(ctx, r); err != nil {
		return "", fmt.Errorf("append %s on %s: outcome unknown: %w", e.Type, e.Entity, err)
	}
	select {
	case f := <-wait:
		return f.answer, f.err
	case <-ctx.Done():
		return "", fmt.Errorf("append %s on %s: written, outcome unknown: %w", e.Type, e.Entity, ctx.Err())
	case <-l.replica.Done():
		return "", fmt.Errorf("append %s on %s: written, outcome unknown: %w", e.Type, e.Entity, stream.ErrReplicaClosed)
	}
}

// await registers for what becomes of a command, before it is written.
func (l *Log) await(e control.Event) (<-chan folded, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.state.Behind; b != nil { // what it would decide on is not the whole truth
		return nil, control.Reject(e, fmt.Errorf("%w: %s", control.ErrBehind, b))
	}
	if l.waiting[e.ID] != nil {
		return nil, fmt.Errorf("append %s on %s: command %s is being appended already: outcome unknown", e.Type, e.Entity, e.ID)
	}
	wait := make(chan folded, 1)
	l.waiting[e.ID] = wait
	return wait, nil
}

// Done returns a channel that is closed when the log is not followed any more; Err then says why.
func (l *Log) Done() <-chan struct{} { return l.replica.Done() }

// Err is why this process must not be relied on: the log cannot be followed any more, or has commands that it does not
// know. Nil: all is well.
func (l *Log) Err() error {
	if err := l.replica.Lost(); err != nil {
		return fmt.Errorf("the control log is not followed any more, restart: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.state.Behind; b != nil {
		return fmt.Errorf("%w: %s", control.ErrBehind, b)
	}
	return nil
}

// Close stops following; State keeps its last value. Holders must have ended.
func (l *Log) Close() {
	l.close()
	l.replica.Close()
	l.background.Wait()
	l.beacon.Close()
	l.producer.Close()
}
