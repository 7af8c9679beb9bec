package joiner

import (
	"fmt"

	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
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

// Process joins polled records and hands what comes out to produce, whose argument is valid until Commit.
func (l *Loop) Process(batches []stream.PartitionBatch, produce func(*stream.Record)) error {
	return l.s.process(batches, produce)
}

// Commit ends a transaction. It reports false where nothing was consumed.
func (l *Loop) Commit() bool {
	_, ok := l.s.propose(l.cfg)
	l.s.commit()
	return ok
}

// Ledger is the account of everything that came in.
func (l *Loop) Ledger() window.Ledger { return l.s.w.Ledger() }
