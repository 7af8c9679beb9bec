package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// ErrReplicaClosed is what waiting for a replica ends with after Close, or when its topic can no longer be followed.
var ErrReplicaClosed = errors.New("log is closed")

// Replica is this process's copy of a topic with one partition: every record, from the first one on, is folded into
// something that its owner keeps. All methods are safe for concurrent use.
type Replica struct {
	topic  string
	cancel context.CancelFunc
	done   chan struct{} // the follower has ended

	mu      sync.Mutex
	lost    error         // why nothing more is read, nil as long as it is
	offset  int64         // of the last record that was folded; -1 before the first
	changed chan struct{} // closed at the next one
}

// OpenReplica reads the topic to its present end and goes on until Close. The topic must exist. fold is called by one
// goroutine, for one record at a time; as with Follow, what it fails with is reported and the record read again.
// report also gets ErrDataLoss, after which nothing more is read.
func OpenReplica(ctx context.Context, c Config, topic string, fold func(*Record) error, report func(error)) (*Replica, error) {
	end, err := EndOffsets(ctx, c, topic)
	if err != nil {
		return nil, err
	}
	follow, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &Replica{topic: topic, cancel: cancel, done: make(chan struct{}), offset: -1, changed: make(chan struct{})}
	go func() {
		defer close(r.done)
		err := Follow(follow, c, topic, 0, func(rec *Record) error {
			if err := fold(rec); err != nil {
				return err
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.offset = rec.Offset
			close(r.changed)
			r.changed = make(chan struct{})
			return nil
		}, report)
		if err != nil {
			r.mu.Lock()
			r.lost = err
			r.mu.Unlock()
			report(err)
		}
	}()
	if err := r.WaitFor(ctx, end[TopicPartition{Topic: topic}]-1); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// WaitFor returns when the record at offset has been folded.
func (r *Replica) WaitFor(ctx context.Context, offset int64) error {
	for {
		r.mu.Lock()
		at, changed := r.offset, r.changed
		r.mu.Unlock()
		if at >= offset {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("read %s up to offset %d: %w", r.topic, offset, ctx.Err())
		case <-r.done:
			return fmt.Errorf("read %s up to offset %d: %w", r.topic, offset, ErrReplicaClosed)
		}
	}
}

// Changed returns a channel that is closed when the next record has been folded. To miss nothing, take the channel
// first and look at the copy then.
func (r *Replica) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// Done returns a channel that is closed when nothing more will be folded.
func (r *Replica) Done() <-chan struct{} { return r.done }

// Wait returns nil when ctx is done, and before that only when the topic can no longer be followed. A process whose copy of a log
// stands still must not go on as if nothing were: let it end with this error.
func (r *Replica) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-r.done:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lost == nil {
		return nil // closed
	}
	return Final(fmt.Errorf("follow %s: %w", r.topic, r.lost), "start this process again: it reads the log from its start")
}

// Close stops following.
func (r *Replica) Close() {
	r.cancel()
	<-r.done
}
