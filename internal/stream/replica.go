package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"ctrloop/internal/telemetry"
)

// ErrReplicaClosed is what waiting for a replica ends with after Close, or when its topic can no longer be followed.
var ErrReplicaClosed = errors.New("log is closed")

// Replica is this process's copy of one partition of a topic: every record, from the first one on, is folded into
// something that its owner keeps. All methods are safe for concurrent use.
type Replica struct {
	at     TopicPartition
	cancel context.CancelFunc
	done   chan struct{} // the follower has ended

	mu      sync.Mutex
	offset  int64         // of the last record that was folded; what the owner began with before the first
	changed chan struct{} // closed at the next one
	lost    error         // why nothing more is read
	work    *telemetry.Work
}

// Reports has the replica say whether it can follow its topic.
func (r *Replica) Reports(w *telemetry.Work) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.work = w
}

func (r *Replica) works() *telemetry.Work {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.work
}

// OpenReplica is OpenPartition for a topic with one partition.
func OpenReplica(
	ctx context.Context, c Config, topic string, from int64, fold func(*Record) error, report func(error),
) (*Replica, error) {
	return OpenPartition(ctx, c, TopicPartition{Topic: topic}, from, fold, report)
}

// OpenPartition reads the partition from an offset (negative: its start) to its present end and goes on until Close. The topic
// must exist. fold is called by one goroutine, for one record at a time; as with Follow, what it fails with is reported
// and the record read again. report also gets ErrDataLoss, after which nothing more is read.
func OpenPartition(
	ctx context.Context, c Config, tp TopicPartition, from int64, fold func(*Record) error, report func(error),
) (*Replica, error) {
	end, err := EndOffsets(ctx, c, tp.Topic)
	if err != nil {
		return nil, err
	}
	start, err := StartOffsets(ctx, c, tp.Topic)
	if err != nil {
		return nil, err
	}
	follow, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &Replica{at: tp, cancel: cancel, done: make(chan struct{}), offset: max(from, 0) - 1, changed: make(chan struct{})}
	go func() {
		defer close(r.done)
		err := Follow(follow, c, tp.Topic, tp.Partition, from, func(rec *Record) error {
			if err := fold(rec); err != nil {
				return err
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.offset = rec.Offset
			close(r.changed)
			r.changed = make(chan struct{})
			return nil
		}, report, r.works)
		if err != nil {
			r.mu.Lock()
			r.lost = err
			r.mu.Unlock()
			report(err)
		}
	}()
	if err := r.catchUp(ctx, c, max(from, start[tp]), end[tp]); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// askAfter is how long the follower may be silent before the broker is asked whether there is anything left to read. It
// only says when to ask; the answer decides.
const askAfter = 100 * time.Millisecond

// catchUp returns when everything below end that can be read has been folded. The records before end may be gone:
// compacted, deleted, or of an aborted transaction. So the place reached counts, not a last record.
func (r *Replica) catchUp(ctx context.Context, c Config, from, end int64) error {
	var cl *kgo.Client
	for {
		r.mu.Lock()
		at, changed := max(r.offset+1, from), r.changed
		r.mu.Unlock()
		if at >= end {
			return nil
		}
		select {
		case <-changed:
			continue
		case <-ctx.Done():
			return fmt.Errorf("read %s up to offset %d: %w", r.at, end-1, ctx.Err())
		case <-r.done:
			return fmt.Errorf("read %s up to offset %d: %w", r.at, end-1, errors.Join(ErrReplicaClosed, r.Lost()))
		case <-time.After(askAfter):
		}
		if cl == nil {
			opts, err := c.options()
			if err != nil {
				return err
			}
			if cl, err = kgo.NewClient(opts...); err != nil {
				return fmt.Errorf("read %s: %w", r.at, err)
			}
			defer cl.Close()
		}
		// An error is the follower's too, which reports it and tries again.
		if next, err := nextRecord(ctx, cl, r.at.Topic, r.at.Partition, at, end); err == nil && next >= end {
			return nil
		}
	}
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
			return fmt.Errorf("read %s up to offset %d: %w", r.at, offset, ctx.Err())
		case <-r.done:
			return fmt.Errorf("read %s up to offset %d: %w", r.at, offset, ErrReplicaClosed)
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

// Lost is why nothing more is folded, although the replica was not closed; nil: it follows.
func (r *Replica) Lost() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost
}

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
	return Final(fmt.Errorf("follow %s: %w", r.at, r.lost), "start this process again: it reads the log from its start")
}

// Close stops following.
func (r *Replica) Close() {
	r.cancel()
	<-r.done
}
