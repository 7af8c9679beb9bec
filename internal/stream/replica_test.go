package stream_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"ctrloop/internal/broker/brokertest"
	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

// copied is what a replica has folded.
type copied struct {
	*stream.Replica
	mu     sync.Mutex
	values []string
}

func openReplica(t *testing.T, b *streamtest.Broker, from int64) *copied {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c := &copied{}
	fold := func(r *stream.Record) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.values = append(c.values, string(r.Value))
		return nil
	}
	var err error
	if c.Replica, err = stream.OpenReplica(ctx, b.Config, schemas.TopicControl, from, fold, func(error) {}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func (c *copied) want(t *testing.T, want ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.values, want) {
		t.Errorf("folded %q, want %q", c.values, want)
	}
}

func said(values ...string) (rs []*stream.Record) {
	for _, v := range values {
		rs = append(rs, &stream.Record{Topic: schemas.TopicControl, Key: []byte("k"), Value: []byte(v)})
	}
	return rs
}

// abort leaves records behind the end of the log that nobody may read.
func abort(t *testing.T, b *streamtest.Broker, values ...string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Config.Brokers...), kgo.TransactionalID("aborts"))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(t.Context(), said(values...)...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := cl.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
	streamtest.AwaitNoTransaction(t, b.Config, schemas.TopicControl)
}

// realBroker is for what the broker in memory does not do as Kafka: its answers of aborted records end before them.
func realBroker(t *testing.T) *streamtest.Broker {
	t.Helper()
	b := &streamtest.Broker{Config: brokertest.Start(t, t.TempDir()).Config()}
	if err := stream.EnsureTopics(t.Context(), b.Config, schemas.Topics(), 1, -1); err != nil {
		t.Fatal(err)
	}
	return b
}

// The last records may be gone when a replica is opened: it is ready at the place that it has reached.
func TestAReplicaOpensWhereTheLastRecordIsGone(t *testing.T) {
	t.Run("all deleted", func(t *testing.T) {
		b := streamtest.Start(t, 1)
		streamtest.Produce(t, b.Config, said("a", "b")...)
		streamtest.DeleteRecords(t, b.Config, schemas.TopicControl, 0, 2)
		c := openReplica(t, b, -1)
		c.want(t)
		streamtest.Produce(t, b.Config, said("c")...)
		if err := c.WaitFor(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		c.want(t, "c")
	})
	t.Run("the end aborted", func(t *testing.T) {
		b := realBroker(t)
		streamtest.Produce(t, b.Config, said("a", "b")...)
		abort(t, b, "x", "y")
		c := openReplica(t, b, -1)
		c.want(t, "a", "b")
		streamtest.Produce(t, b.Config, said("c")...)
		if err := c.WaitFor(t.Context(), 5); err != nil {
			t.Fatal(err)
		}
		c.want(t, "a", "b", "c")
	})
	t.Run("nothing but aborted", func(t *testing.T) {
		b := realBroker(t)
		abort(t, b, "x")
		openReplica(t, b, -1).want(t)
	})
	t.Run("from the end", func(t *testing.T) {
		b := streamtest.Start(t, 1)
		streamtest.Produce(t, b.Config, said("a", "b", "c")...)
		openReplica(t, b, 3).want(t)
		openReplica(t, b, 2).want(t, "c")
	})
}

// A replica whose place was deleted says so, and why.
func TestAReplicaThatCannotFollowSaysWhy(t *testing.T) {
	b := streamtest.Start(t, 1)
	streamtest.Produce(t, b.Config, said("a", "b", "c")...)
	streamtest.DeleteRecords(t, b.Config, schemas.TopicControl, 0, 2)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := stream.OpenReplica(ctx, b.Config, schemas.TopicControl, 1, func(*stream.Record) error { return nil }, func(error) {})
	if !errors.Is(err, stream.ErrDataLoss) || !errors.Is(err, stream.ErrReplicaClosed) {
		t.Errorf("a copy that begins in the middle of what is gone: %v", err)
	}
}
