package joiner

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
	"ctrloop/joiner/segment"
	"ctrloop/joiner/window"
)

// Loop is all that one goroutine does for a partition except talking to the broker: decode, join, close, encode
// labels and audit, and the metadata of the commit. It is there to be measured.
type Loop struct {
	cfg Config
	s   *shard
}

// NewLoop returns the loop of partition 0, with nothing in its windows.
func NewLoop(cfg Config) (*Loop, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("joiner configuration: %w", err)
	}
	const seed = 7 // any: it has no effect on results
	return &Loop{cfg, newShard(newGuard(cfg, zerolog.Nop()), 0, window.New(cfg.window(seed)), [2]int64{}, 0)}, nil
}

// Process joins polled records and hands what comes out to produce, whose argument is valid until Commit. It closes all
// windows that the watermark allows.
func (l *Loop) Process(batches []stream.PartitionBatch, produce func(*stream.Record)) error {
	return l.s.process(batches, new(allowance), produce)
}

// Commit ends a transaction. It reports false where nothing was consumed.
func (l *Loop) Commit() bool {
	_, ok := l.s.propose(l.cfg)
	l.s.commit()
	return ok
}

// Ledger is the account of everything that came in.
func (l *Loop) Ledger() window.Ledger { return l.s.w.Ledger() }

// Saved is what a commit keeps of a loop's state, beside its segments.
type Saved struct {
	sequence int64
	snapshot window.Snapshot
}

// Save writes the state to segments in a folder, as a stop in good order does, and returns what the group's offsets
// would hold. Call it between transactions. A disk that fails shows when they are loaded.
func (l *Loop) Save(dir string) (Saved, error) {
	k, err := l.keeper(dir)
	if err != nil {
		return Saved{}, err
	}
	k.Close(l.s.w, segment.Place{Sequence: l.s.sequence, Next: l.s.committed, Epoch: l.s.epoch})
	return Saved{l.s.sequence, l.s.w.Snapshot(l.s.committed)}, nil
}

func (l *Loop) keeper(dir string) (*segment.Keeper, error) {
	counts, err := segment.NewMetrics(prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	id := segment.Identity{WindowMS: l.cfg.Window.Milliseconds(), BucketMS: l.cfg.Bucket.Milliseconds()}
	return segment.Open(dir, id, segment.Options{Interval: time.Hour, Now: time.Now, Log: l.s.guard.log, Count: counts}), nil
}

// Load gives a new loop the state in a folder, as a restart does, and checks it against what was saved.
func (l *Loop) Load(dir string, s Saved) error {
	k, err := l.keeper(dir)
	if err != nil {
		return err
	}
	defer k.Release()
	w, _, err := k.Load(l.cfg.window(0), s.sequence, s.snapshot, func(segment.Place) error { return nil })
	if err != nil {
		return err
	}
	if w == nil {
		return fmt.Errorf("no segments in %s: they could not be written", dir)
	}
	if err := w.Restored(s.snapshot); err != nil {
		return err
	}
	l.s = newShard(l.s.guard, l.s.partition, w, s.snapshot.NextOffset, s.sequence)
	return nil
}
