package stage

import (
	"context"
	"sync"
	"time"

	"ctrloop/internal/stream"
)

// step names a place where the process may die.
type step string

const (
	stepPolled    step = "polled"     // records in hand, no transaction yet
	stepProducing step = "producing"  // in the middle of the outputs
	stepCommit    step = "committing" // everything produced, not committed
	stepCommitted step = "committed"  // committed, and nobody told
	stepRebuild   step = "rebuilding" // in the middle of a replay
)

// faulty is a broker that asks at every step whether to break off there.
type faulty struct {
	broker
	fault func(step) error
}

func (f faulty) join(c stream.TxConfig) (transactions, error) {
	tx, err := f.broker.join(c)
	return &faultyTx{transactions: tx, fault: f.fault}, err
}

func (f faulty) read(ctx context.Context, topic string, partition int32, from, to int64, each func(*stream.Record) error) error {
	return f.broker.read(ctx, topic, partition, from, to, func(r *stream.Record) error {
		if err := each(r); err != nil {
			return err
		}
		return f.fault(stepRebuild)
	})
}

type faultyTx struct {
	transactions
	fault func(step) error

	mu     sync.Mutex
	broken error // what came in the middle of the outputs: nothing is written after it
}

func (f *faultyTx) Poll(ctx context.Context, wait time.Duration) (stream.Batch, error) {
	b, err := f.transactions.Poll(ctx, wait)
	if err == nil && len(b.Partitions) > 0 {
		err = f.fault(stepPolled)
	}
	return b, err
}

func (f *faultyTx) Produce(r *stream.Record) {
	err := f.fault(stepProducing)
	f.mu.Lock()
	if f.broken == nil {
		f.broken = err
	}
	broken := f.broken
	f.mu.Unlock()
	if broken == nil {
		f.transactions.Produce(r)
	}
}

func (f *faultyTx) Commit(ctx context.Context, meta func(string, int32) (string, bool)) (bool, error) {
	if f.broken != nil {
		return false, f.broken
	}
	if err := f.fault(stepCommit); err != nil {
		return false, err
	}
	committed, err := f.transactions.Commit(ctx, meta)
	if err == nil && committed {
		err = f.fault(stepCommitted)
	}
	return committed, err
}
