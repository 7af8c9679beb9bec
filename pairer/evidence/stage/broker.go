package stage

import (
	"context"
	"time"

	"ctrloop/internal/stream"
)

// broker is where a session reads and writes.
type broker interface {
	join(c stream.TxConfig) (transactions, error)
	// read calls each for every record of a stretch of a partition, in order.
	read(ctx context.Context, topic string, partition int32, from, to int64, each func(*stream.Record) error) error
}

// transactions are one member of the group; *stream.Tx says what the methods do.
type transactions interface {
	Poll(ctx context.Context, wait time.Duration) (stream.Batch, error)
	Begin() error
	Produce(r *stream.Record)
	Commit(ctx context.Context, meta func(topic string, partition int32) (string, bool)) (committed bool, err error)
	Wake()
	Resume(topic string, partitions ...int32)
	Leave(ctx context.Context) error
	Close()
}

// kafka is the broker that there is.
type kafka struct{ stream.Config }

func (k kafka) join(c stream.TxConfig) (transactions, error) { return stream.NewTx(k.Config, c) }

func (k kafka) read(ctx context.Context, topic string, partition int32, from, to int64, each func(*stream.Record) error) error {
	return stream.ReadRange(ctx, k.Config, topic, partition, from, to, each)
}
