// Package streamtest starts brokers for tests: the embedded broker without a disk, with a way to inject
// faults; or, in the ring of `make kafka-ring`, a real Apache Kafka.
package streamtest

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"ctrloop/internal/stream"
	"ctrloop/schemas"
)

// Broker is a broker that lives as long as the test.
type Broker struct {
	// Cluster gives access to faults (Cluster.Fault), controls and leader shuffles. It is nil in the ring: tests
	// that need it call NeedFake.
	Cluster *kfake.Cluster
	Config  stream.Config
}

// Start starts a broker with every topic of schemas.Topics, with the given number of partitions each
// (control.v1 and creatives.v1 have one).
func Start(t testing.TB, partitions int32) *Broker {
	t.Helper()
	return StartTopics(t, partitions, schemas.Topics()...)
}

// StartTopics starts a broker with these topics.
func StartTopics(t testing.TB, partitions int32, topics ...schemas.Topic) *Broker {
	t.Helper()
	return start(t, 1, partitions, topics)
}

// StartNodes starts a cluster of several brokers, whose leaders and coordinators a test can move. It skips the test in
// the ring, which has one real broker.
func StartNodes(t testing.TB, nodes int, partitions int32) *Broker {
	t.Helper()
	NeedFake(t)
	return start(t, nodes, partitions, schemas.Topics())
}

func start(t testing.TB, nodes int, partitions int32, topics []schemas.Topic) *Broker {
	t.Helper()
	b := &Broker{Config: stream.Default()}
	if Ring() {
		b.Config = lease(t)
	} else {
		c, err := kfake.NewCluster(kfake.NumBrokers(nodes), kfake.BrokerConfigs(map[string]string{"log.retention.ms": "-1"}))
		if err != nil {
			t.Fatalf("start broker: %v", err)
		}
		t.Cleanup(c.Close)
		b.Cluster, b.Config.Brokers = c, c.ListenAddrs()
	}
	if len(topics) > 0 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := stream.EnsureTopics(ctx, b.Config, topics, partitions, -1); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// Records reads everything committed in a topic, by partition.
func Records(t testing.TB, c stream.Config, topic string) map[int32][]*stream.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	start, err := stream.StartOffsets(ctx, c, topic)
	if err != nil {
		t.Fatal(err)
	}
	end, err := stream.EndOffsets(ctx, c, topic)
	if err != nil {
		t.Fatal(err)
	}
	out := map[int32][]*stream.Record{}
	for tp, to := range end {
		err := stream.ReadRange(ctx, c, topic, tp.Partition, start[tp], to, func(r *stream.Record) error {
			out[tp.Partition] = append(out[tp.Partition], r)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// Produce writes the records and waits for the acknowledgements.
func Produce(t testing.TB, c stream.Config, rs ...*stream.Record) {
	t.Helper()
	p, err := stream.NewProducer(c, stream.ProducerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := p.Produce(ctx, rs...); err != nil {
		t.Fatal(err)
	}
}
