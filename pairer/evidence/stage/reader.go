package stage

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"ctrloop/internal/stream"
	"ctrloop/pairer/evidence"
	"ctrloop/schemas"
)

// Reader is this process's copy of evidence.v1, all partitions added up. All methods are safe for concurrent use.
type Reader struct {
	replicas []*stream.Replica

	mu   sync.Mutex
	fold *evidence.Fold
}

// OpenReader reads evidence.v1 to its present end and goes on until Close. What cannot be read is reported, and read again.
func OpenReader(ctx context.Context, c stream.Config, report func(error)) (*Reader, error) {
	n, err := stream.PartitionCounts(ctx, c, schemas.TopicEvidence)
	if err != nil {
		return nil, err
	}
	r := &Reader{fold: evidence.NewFold(), replicas: make([]*stream.Replica, n[schemas.TopicEvidence])}
	g, within := errgroup.WithContext(ctx)
	for p := range r.replicas {
		g.Go(func() (err error) {
			tp := stream.TopicPartition{Topic: schemas.TopicEvidence, Partition: int32(p)}
			r.replicas[p], err = stream.OpenPartition(within, c, tp, -1, r.apply, report)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		r.Close()
		return nil, fmt.Errorf("read the evidence: %w", err)
	}
	return r, nil
}

func (r *Reader) apply(rec *stream.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fold.Apply(rec.Partition, rec.Key, rec.Value)
}

// View calls look with the fold as it stands; nothing is added meanwhile.
func (r *Reader) View(look func(*evidence.Fold)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	look(r.fold)
}

// Lost is why a partition is no longer followed, although the reader was not closed; nil: all are.
func (r *Reader) Lost() error {
	for _, replica := range r.replicas {
		if err := replica.Lost(); err != nil {
			return err
		}
	}
	return nil
}

// Close stops following.
func (r *Reader) Close() {
	for _, replica := range r.replicas {
		if replica != nil {
			replica.Close()
		}
	}
}
