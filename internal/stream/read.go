package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"ctrloop/internal/telemetry"
)

// errStop ends follow without an error.
var errStop = errors.New("stop")

// ReadRange calls fn with every committed record of [from, to) in order, and returns when it has passed
// `to` (exclusive), an end marker or an aborted batch there included. It is a plain reader beside any
// group, with fetches of its own.
func ReadRange(ctx context.Context, c Config, topic string, partition int32, from, to int64, fn func(*Record) error) error {
	if from >= to {
		return nil
	}
	end, err := EndOffsets(ctx, c, topic)
	if err != nil {
		return err
	}
	if end, ok := end[TopicPartition{topic, partition}]; !ok || to > end {
		return fmt.Errorf("read %s/%d up to %d: the partition ends at %d: %w", topic, partition, to, end, ErrDataLoss)
	}
	err = follow(ctx, c, topic, partition, from, func(r *Record) error {
		if r.Offset < to && !r.Attrs.IsControl() {
			if err := fn(r); err != nil {
				return err
			}
		}
		if r.Offset+1 >= to {
			return errStop
		}
		return nil
	}, nil, kgo.KeepControlRecords()) // the only sign of a range that ends with an aborted batch
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// Tail calls fn with every committed record from `from` on, until ctx is done, an error of fn, or data
// loss. It returns ctx's error when it is done. A negative `from` is the start of the partition.
func Tail(ctx context.Context, c Config, topic string, partition int32, from int64, fn func(*Record) error) error {
	return follow(ctx, c, topic, partition, from, fn, nil)
}

// lookEvery is how often a reader says that it is there, while nothing comes.
const lookEvery = time.Second

// follow reads on; alive, unless nil, is called while nothing comes.
func follow(
	ctx context.Context, c Config, topic string, partition int32, from int64, fn func(*Record) error, alive func(), extra ...kgo.Opt,
) error {
	opts, err := c.options()
	if err != nil {
		return err
	}
	start := kgo.NewOffset().AtStart()
	if from >= 0 {
		start = kgo.NewOffset().At(from)
	}
	cl, err := kgo.NewClient(append(append(opts,
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: start}}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxPartitionBytes(8<<20), // one partition: larger bites than a group's
	), extra...)...)
	if err != nil {
		return fmt.Errorf("reader of %s/%d: %w", topic, partition, err)
	}
	defer cl.Close()
	figures := c.readings()
	figures.open.Inc()
	defer figures.open.Dec()
	for {
		fetches, over := poll(ctx, cl, alive)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if over {
			alive()
			continue
		}
		for _, e := range fetches.Errors() {
			figures.no.Inc()
			var loss *kgo.ErrDataLoss
			if errors.As(e.Err, &loss) || errors.Is(e.Err, kerr.OffsetOutOfRange) {
				return fmt.Errorf("read %s/%d from %d: %w: %w", topic, partition, from, ErrDataLoss, e.Err)
			}
			return fmt.Errorf("read %s/%d: %w", topic, partition, e.Err)
		}
		for it := fetches.RecordIter(); !it.Done(); {
			r := it.Next()
			figures.records.Inc()
			figures.bytes.Add(float64(len(r.Key) + len(r.Value)))
			if err := fn(r); err != nil {
				return err
			}
		}
	}
}

// poll waits for something to read; over says that nothing came for lookEvery, where somebody wants to know.
func poll(ctx context.Context, cl *kgo.Client, alive func()) (fetches kgo.Fetches, over bool) {
	if alive == nil {
		return cl.PollFetches(ctx), false
	}
	within, cancel := context.WithTimeout(ctx, lookEvery)
	defer cancel()
	fetches = cl.PollFetches(within)
	return fetches, within.Err() != nil && fetches.NumRecords() == 0 && errors.Is(fetches.Err0(), context.DeadlineExceeded)
}

// Follow is Tail that outlives failures: it reads a partition from an offset on (negative: its start) and, when the
// connection or fn fails, reports the error and goes on after the last record that fn took, at most a few seconds
// later, which work is told. It returns nil when ctx is done, and ErrDataLoss, which waiting does not heal.
func Follow(
	ctx context.Context, c Config, topic string, partition int32, from int64, fn func(*Record) error, report func(error),
	work func() *telemetry.Work,
) error {
	const longest = 5 * time.Second
	wait := 100 * time.Millisecond
	for {
		work().Begin()
		err := follow(ctx, c, topic, partition, from, func(r *Record) error {
			if err := fn(r); err != nil {
				return err
			}
			from, wait = r.Offset+1, 100*time.Millisecond
			work().Worked()
			return nil
		}, func() { work().Alive() })
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrDataLoss):
			work().Stuck(err)
			return err
		}
		work().Failed(err)
		report(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
			wait = min(2*wait, longest)
		}
	}
}

// nextRecord returns the offset of the first committed record in [from, to), or `to` when there is none: what lies there
// may have been compacted away, aborted or deleted, and a reader that waits for it waits for ever.
func nextRecord(ctx context.Context, cl *kgo.Client, topic string, partition int32, from, to int64) (int64, error) {
	meta, err := kadm.NewClient(cl).Metadata(ctx, topic)
	if err != nil {
		return 0, fmt.Errorf("look for records of %s/%d: %w", topic, partition, err)
	}
	t := meta.Topics[topic]
	p, ok := t.Partitions[partition]
	if err := errors.Join(t.Err, p.Err); err != nil || !ok {
		return 0, fmt.Errorf("look for records of %s/%d: found %v: %w", topic, partition, ok, err)
	}
	for from < to {
		answer, err := fetchOnce(ctx, cl, p.Leader, t, partition, from)
		if err != nil {
			return 0, fmt.Errorf("look for records of %s/%d from %d: %w", topic, partition, from, err)
		}
		if len(answer.RecordBatches) == 0 {
			if answer.LastStableOffset >= to {
				return to, nil
			}
			return 0, fmt.Errorf("look for records of %s/%d from %d: nothing below %d can be read", topic, partition, from, to)
		}
		o := kgo.ProcessFetchPartitionOpts{Offset: from, IsolationLevel: kgo.ReadCommitted(), Topic: topic, Partition: partition}
		fetched, next := kgo.ProcessFetchPartition(o, answer, kgo.DefaultDecompressor(), nil)
		if fetched.Err != nil {
			return 0, fmt.Errorf("look for records of %s/%d from %d: %w", topic, partition, from, fetched.Err)
		}
		if len(fetched.Records) > 0 {
			return min(fetched.Records[0].Offset, to), nil
		}
		if next <= from {
			return 0, fmt.Errorf("look for records of %s/%d: no progress at %d", topic, partition, from)
		}
		from = next
	}
	return to, nil
}

// fetchOnce asks the leader once for the batch at an offset, and does not wait for one.
func fetchOnce(
	ctx context.Context, cl *kgo.Client, leader int32, t kadm.TopicDetail, partition int32, offset int64,
) (*kmsg.FetchResponseTopicPartition, error) {
	rp := kmsg.NewFetchRequestTopicPartition()
	rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes = partition, offset, 1 // the first batch comes whole
	rt := kmsg.NewFetchRequestTopic()
	rt.Topic, rt.TopicID, rt.Partitions = t.Topic, t.ID, []kmsg.FetchRequestTopicPartition{rp}
	req := kmsg.NewPtrFetchRequest()
	req.MaxBytes, req.IsolationLevel, req.SessionEpoch = 1, 1, -1
	req.Topics = []kmsg.FetchRequestTopic{rt}
	resp, err := cl.Broker(int(leader)).Request(ctx, req)
	if err != nil {
		return nil, err
	}
	answer := resp.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(answer.ErrorCode); err != nil {
		return nil, err
	}
	for _, rt := range answer.Topics {
		for i := range rt.Partitions {
			if rt.Partitions[i].Partition == partition {
				return &rt.Partitions[i], kerr.ErrorForCode(rt.Partitions[i].ErrorCode)
			}
		}
	}
	// A broker leaves partitions without anything new out of an answer only in sessions, which this is not.
	return nil, errors.New("the answer lacks the partition")
}
