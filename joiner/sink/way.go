package sink

import (
	"context"

	"ctrloop/internal/stream"
	"ctrloop/schemas"
)

// Way tells what of the joiner's transactions is still on its way into the warehouse. Labels and their audit travel
// separately, and the broker tells the partitions of a transaction one after the other that it has ended. So a mark is taken
// of all that has been written, open transactions included: a transaction of which anything was visible before the mark lies
// before it with everything that it has.
type Way struct {
	cfg   Config
	meter *stream.LagMeter
}

// NewWay looks at the sink of a configuration: its brokers and its group. It connects when it is asked.
func NewWay(cfg Config) *Way { return &Way{cfg: cfg, meter: stream.NewLagMeter(cfg.Kafka)} }

// Mark is a moment: the ends of labels.v1 and audit.v1, open transactions included.
type Mark map[stream.TopicPartition]int64

// Mark takes one now.
func (w *Way) Mark(ctx context.Context) (Mark, error) {
	return stream.WrittenOffsets(ctx, w.cfg.Kafka, schemas.TopicLabels, schemas.TopicAudit)
}

// Left is what lies before a mark and is not in the warehouse. The zero value is nothing.
type Left struct {
	// Labels by partition of labels.v1, and the records of audit.v1. Offsets, so ends of transactions between them count.
	Labels map[int32]int64
	Audit  int64
}

// Rows are all of them.
func (l Left) Rows() (n int64) {
	for _, k := range l.Labels {
		n += k
	}
	return n + l.Audit
}

// Left says what of a mark is not in the warehouse yet.
func (w *Way) Left(ctx context.Context, m Mark) (Left, error) {
	left := Left{Labels: map[int32]int64{}}
	labels, audit := Mark{}, Mark{}
	for tp, at := range m {
		if tp.Topic == schemas.TopicLabels {
			labels[tp] = at
		} else {
			audit[tp] = at
		}
	}
	open, err := w.meter.Before(ctx, w.cfg.Group, labels)
	if err != nil {
		return left, err
	}
	for tp, n := range open {
		left.Labels[tp.Partition] = n
	}
	if open, err = w.meter.Before(ctx, w.cfg.mirrorGroup(), audit); err != nil {
		return left, err
	}
	for _, n := range open {
		left.Audit += n
	}
	return left, nil
}
