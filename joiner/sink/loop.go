package sink

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
)

// Loop is the sink's work on one partition of labels.v1 without a group: decode, cut, insert. For benchmarks.
type Loop struct {
	w *session
	p *part
}

// NewLoop returns a loop at the first record that comes.
func NewLoop(cfg Config, db Warehouse) (*Loop, error) {
	s, err := New(cfg, db, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	p := &part{next: -1, epoch: -1}
	return &Loop{w: &session{Service: s, topicID: "loop", parts: map[int32]*part{0: p}}, p: p}, nil
}

// Process takes records of partition 0 and inserts the blocks that are full.
func (l *Loop) Process(ctx context.Context, rs []*stream.Record) error {
	now := time.Now()
	l.w.take(stream.PartitionBatch{Records: rs}, now)
	return l.insert(ctx, now)
}

// Flush inserts the rest.
func (l *Loop) Flush(ctx context.Context) error {
	return l.insert(ctx, time.Now().Add(2*l.w.cfg.FlushInterval))
}

func (l *Loop) insert(ctx context.Context, now time.Time) error {
	for {
		blocks := l.w.due(now)
		if len(blocks) == 0 {
			return nil
		}
		for _, b := range blocks {
			if err := l.w.insert(ctx, b); err != nil {
				return err
			}
			l.p.next = b.to
			l.p.block.Drop(b.n)
			l.p.first = now
		}
	}
}
