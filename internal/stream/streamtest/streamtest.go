// Package streamtest starts brokers for tests: the embedded broker without a disk, with a way to inject
// faults; or, in the ring of `make kafka-ring`, a real Apache Kafka.
package streamtest

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

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

// StartVirtual starts a broker for a bubble of testing/synctest, with every topic of schemas.Topics: nothing of it waits for the
// machine's clock or network. Call it inside of the bubble; stop it there too.
func StartVirtual(t testing.TB, partitions int32) (b *Broker, stop func()) {
	t.Helper()
	var network kfake.VirtualNetwork
	c, err := kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.ListenFn(network.Listen),
		kfake.Ports(9092),
		kfake.BrokerConfigs(map[string]string{"log.retention.ms": "-1"}),
	)
	if err != nil {
		t.Fatalf("start broker: %v", err)
	}
	b = &Broker{Config: stream.Default(), Cluster: c}
	b.Config.Brokers, b.Config.Dial = []string{"localhost:9092"}, network.DialContext
	if err := stream.EnsureTopics(t.Context(), b.Config, schemas.Topics(), partitions, -1); err != nil {
		t.Fatal(err)
	}
	return b, c.Close
}

// client is a bare client of the broker.
func client(t testing.TB, c stream.Config) *kgo.Client {
	t.Helper()
	opts := []kgo.Opt{kgo.SeedBrokers(c.Brokers...)}
	if c.Dial != nil {
		opts = append(opts, kgo.Dialer(c.Dial))
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	return cl
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

// AwaitNoTransaction waits until everything in the topics is committed or aborted. A real broker answers the end of a
// transaction before its markers are in every partition, and an instance that stopped in the middle of one has left it
// to the broker's timeout (20 s); until then nobody reads what lies behind it.
func AwaitNoTransaction(t testing.TB, c stream.Config, topics ...string) {
	t.Helper()
	cl := client(t, c)
	defer cl.Close()
	adm := kadm.NewClient(cl)
	for deadline := time.Now().Add(time.Minute); ; {
		ends, err := adm.ListEndOffsets(t.Context(), topics...)
		if err != nil {
			t.Fatal(err)
		}
		stable, err := adm.ListCommittedOffsets(t.Context(), topics...)
		if err != nil {
			t.Fatal(err)
		}
		open := ""
		ends.Each(func(o kadm.ListedOffset) {
			if at, _ := stable.Lookup(o.Topic, o.Partition); at.Offset != o.Offset {
				open = fmt.Sprintf("%s/%d can be read up to %d of %d", o.Topic, o.Partition, at.Offset, o.Offset)
			}
		})
		if open == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("a transaction stays open: %s", open)
		}
		<-time.After(20 * time.Millisecond)
	}
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

// Members are the instance ids of a group, in order; dynamic members have none and count as "".
func Members(t testing.TB, c stream.Config, group string) (ids []string) {
	t.Helper()
	cl := client(t, c)
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	groups, err := kadm.NewClient(cl).DescribeGroups(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range groups[group].Members {
		id := ""
		if m.InstanceID != nil {
			id = *m.InstanceID
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// DeleteRecords makes a partition begin at an offset, as retention does.
func DeleteRecords(t testing.TB, c stream.Config, topic string, partition int32, before int64) {
	t.Helper()
	cl := client(t, c)
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	offsets := kadm.Offsets{}
	offsets.AddOffset(topic, partition, before, -1)
	answer, err := kadm.NewClient(cl).DeleteRecords(ctx, offsets)
	if err == nil {
		err = answer.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Rights refuses requests of a broker in memory as a broker does that has withdrawn a right.
type Rights struct{ refused atomic.Bool }

// Withdraw refuses from now on, until Give.
func (r *Rights) Withdraw() { r.refused.Store(true) }

// Give ends that.
func (r *Rights) Give() { r.refused.Store(false) }

// Rights are those to belong to groups and to read topics; all are given at first.
func (b *Broker) Rights() *Rights {
	r := &Rights{}
	for _, key := range []kmsg.Key{kmsg.JoinGroup, kmsg.Heartbeat, kmsg.Fetch} {
		b.Cluster.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
			b.Cluster.KeepControl()
			if !r.refused.Load() {
				return nil, nil, false
			}
			return refusal(req), nil, true
		})
	}
	return r
}

// refusal is the broker's answer to who has no right.
func refusal(req kmsg.Request) kmsg.Response {
	switch q := req.(type) {
	case *kmsg.JoinGroupRequest:
		a := q.ResponseKind().(*kmsg.JoinGroupResponse)
		a.ErrorCode = kerr.GroupAuthorizationFailed.Code
		return a
	case *kmsg.HeartbeatRequest:
		a := q.ResponseKind().(*kmsg.HeartbeatResponse)
		a.ErrorCode = kerr.GroupAuthorizationFailed.Code
		return a
	}
	q := req.(*kmsg.FetchRequest)
	a := q.ResponseKind().(*kmsg.FetchResponse)
	for _, t := range q.Topics {
		at := kmsg.NewFetchResponseTopic()
		at.Topic, at.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			ap := kmsg.NewFetchResponseTopicPartition()
			ap.Partition, ap.ErrorCode = p.Partition, kerr.TopicAuthorizationFailed.Code
			at.Partitions = append(at.Partitions, ap)
		}
		a.Topics = append(a.Topics, at)
	}
	return a
}
