package stream

import (
	"context"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kadm"
)

// shortSpan is the length up to which a lag is read to see whether it holds records at all: markers of
// transactions take an offset each and carry nothing.
const shortSpan = 100

// span is [from, to) of a partition.
type span struct{ from, to int64 }

// LagMeter measures lags again and again: it remembers which ends of partitions hold nothing but markers,
// and does not read them a second time. It may be used by several goroutines.
type LagMeter struct {
	c Config

	mu    sync.Mutex
	empty map[TopicPartition]span // one each, so that the map stays as small as the topics
}

// NewLagMeter returns a meter that has not connected yet.
func NewLagMeter(c Config) *LagMeter { return &LagMeter{c: c, empty: map[TopicPartition]span{}} }

// Lag is LagMeter.Lag, once.
func Lag(ctx context.Context, c Config, group string, topics ...string) (int64, error) {
	return NewLagMeter(c).Lag(ctx, group, topics...)
}

// Lag is how many offsets of the topics the group has not committed, over all partitions. Ends of
// transactions do not count where nothing but them is left. 0 means that the group has seen everything
// that could be read when Lag was called.
func (m *LagMeter) Lag(ctx context.Context, group string, topics ...string) (int64, error) {
	open, err := uncommitted(ctx, m.c, group, topics)
	if err != nil {
		return 0, err
	}
	var total int64
	for tp, s := range open {
		n, err := m.records(ctx, tp, s)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// Before is how many offsets before the given ones a group has not committed, by partition; partitions that have none left
// are not in it. A partition where a transaction is still open before its offset has at least one. Ends of transactions
// count as in Lag.
func (m *LagMeter) Before(ctx context.Context, group string, marks map[TopicPartition]int64) (map[TopicPartition]int64, error) {
	var topics []string
	for tp := range marks {
		if !slices.Contains(topics, tp.Topic) {
			topics = append(topics, tp.Topic)
		}
	}
	out := map[TopicPartition]int64{}
	if len(topics) == 0 {
		return out, nil
	}
	// Ends first: what they hide was not committed before either.
	end, err := EndOffsets(ctx, m.c, topics...)
	if err != nil {
		return nil, err
	}
	open, err := uncommitted(ctx, m.c, group, topics)
	if err != nil {
		return nil, err
	}
	for tp, mark := range marks {
		s := open[tp]
		if end[tp] < mark { // something before the mark cannot be read yet
			out[tp] = max(1, min(s.to, mark)-s.from)
			continue
		}
		if s.to = min(s.to, mark); s.from >= s.to {
			continue
		}
		n, err := m.records(ctx, tp, s)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			out[tp] = n
		}
	}
	return out, nil
}

// uncommitted is what of each partition lies behind the group's place, over one connection.
func uncommitted(ctx context.Context, c Config, group string, topics []string) (map[TopicPartition]span, error) {
	out := map[TopicPartition]span{}
	err := admin(ctx, c, func(ctx context.Context, adm *kadm.Client) error {
		// The place before the end: a commit in between makes the lag too long, never too short.
		committed, err := stableOffsets(ctx, adm, group)
		if err != nil {
			return err
		}
		start, err := listOffsets(ctx, adm, "start", topics, (*kadm.Client).ListStartOffsets)
		if err != nil {
			return err
		}
		end, err := listOffsets(ctx, adm, "end", topics, (*kadm.Client).ListCommittedOffsets)
		if err != nil {
			return err
		}
		for tp, to := range end {
			from := start[tp]
			if at, ok := committed[tp]; ok {
				from = max(from, at.Offset)
			}
			if from < to {
				out[tp] = span{from, to}
			}
		}
		return nil
	})
	return out, err
}

// records is the length of a span, or 0 where it is short and holds no record.
func (m *LagMeter) records(ctx context.Context, tp TopicPartition, s span) (int64, error) {
	switch {
	case s.to-s.from > shortSpan:
		return s.to - s.from, nil
	case m.isEmpty(tp, s):
		return 0, nil
	}
	var n int64
	if err := ReadRange(ctx, m.c, tp.Topic, tp.Partition, s.from, s.to, func(*Record) error { n++; return nil }); err != nil {
		return 0, err
	}
	if n > 0 {
		return s.to - s.from, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.empty[tp] = s
	return 0, nil
}

func (m *LagMeter) isEmpty(tp TopicPartition, s span) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.empty[tp] == s // the zero span is never asked for: see uncommitted
}
