package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// ProducerConfig bounds a producer; zero fields take the defaults.
type ProducerConfig struct {
	// Linger is how long a batch waits for company. Default 2 ms: a request of the edge waits for its
	// acknowledgement, and batches fill by themselves under load.
	Linger time.Duration
	// MaxBufferedRecords bounds what waits for the broker; Produce blocks beyond it. Default 100,000.
	MaxBufferedRecords int
	// MaxBufferedBytes bounds the same in bytes. Default 64 MiB.
	MaxBufferedBytes int
}

// Producer writes records that every in-sync replica has acknowledged, each once (idempotent).
type Producer struct{ cl *kgo.Client }

// NewProducer connects lazily: it returns before a broker was reached.
func NewProducer(c Config, pc ProducerConfig) (*Producer, error) {
	opts, err := c.options()
	if err != nil {
		return nil, err
	}
	cl, err := kgo.NewClient(append(opts,
		kgo.ProducerLinger(orDefault(pc.Linger, 2*time.Millisecond)),
		kgo.MaxBufferedRecords(orDefault(pc.MaxBufferedRecords, 100_000)),
		kgo.MaxBufferedBytes(orDefault(pc.MaxBufferedBytes, 64<<20)),
	)...)
	if err != nil {
		return nil, fmt.Errorf("kafka producer: %w", err)
	}
	return &Producer{cl}, nil
}

func orDefault[T comparable](v, d T) T {
	var zero T
	if v == zero {
		return d
	}
	return v
}

// Produce writes the records and waits for all acknowledgements. It returns the first error; others of
// the records may then have been written. Records of one key keep their order within and across calls
// of one goroutine.
//
// A topic that was deleted and made anew has another id. The client does not ask for it again by itself, so what it knows of
// the topic is forgotten: this call fails, the next one finds the new topic.
func (p *Producer) Produce(ctx context.Context, rs ...*Record) error {
	var (
		acks  sync.WaitGroup
		once  sync.Once
		first error
		topic string // of the first error
	)
	acks.Add(len(rs))
	promise := func(r *Record, err error) {
		if err != nil {
			once.Do(func() { first, topic = fmt.Errorf("produce to %s: %w", r.Topic, err), r.Topic })
		}
		acks.Done()
	}
	for _, r := range rs {
		p.cl.Produce(ctx, r, promise)
	}
	acks.Wait()
	if errors.Is(first, kerr.UnknownTopicID) || errors.Is(first, kerr.UnknownTopicOrPartition) {
		p.cl.PurgeTopicsFromProducing(topic)
	}
	return first
}

// Buffered is how many records wait for an acknowledgement.
func (p *Producer) Buffered() int64 { return p.cl.BufferedProduceRecords() }

// Close drops what was not acknowledged and disconnects.
func (p *Producer) Close() { p.cl.Close() }
