package joiner

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
)

// crew is a number of instances in a bubble of virtual time.
type crew struct {
	t       *testing.T
	cfg     Config
	tr      *truth
	pause   atomic.Int64  // of a rebuild at each record, ns
	longest time.Duration // of a rebuild; 0: they take no time
	in      map[string]*instance
	wrote   int // slices of the history
}

const crewSlices = 12

func newCrew(t *testing.T, b *streamtest.Broker, partitions int32) *crew {
	c := &crew{t: t, cfg: testConfig(b), in: map[string]*instance{}}
	c.cfg.Workers = int(partitions)
	c.cfg.CommitInterval = 250 * time.Millisecond
	c.tr = newTruth(42, c.cfg, partitions, 3000, 20*time.Minute)
	return c
}

// write writes the next slice of the history.
func (c *crew) write() {
	c.t.Helper()
	for _, rs := range [][]*stream.Record{c.tr.imps, c.tr.clks} {
		streamtest.Produce(c.t, c.cfg.Kafka, rs[c.wrote*len(rs)/crewSlices:(c.wrote+1)*len(rs)/crewSlices]...)
	}
	c.wrote++
	if c.longest > 0 {
		c.slow(c.longest)
	}
}

func (c *crew) come(name string) {
	c.t.Helper()
	cfg := c.cfg
	cfg.TransactionalID, cfg.InstanceID = name, name
	i := prepare(c.t, cfg, func(s step) error {
		if s == stepRebuild {
			time.Sleep(time.Duration(c.pause.Load()))
		}
		return nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	i.stop = cancel
	go func() { i.done <- i.Run(ctx) }()
	c.in[name] = i
}

func (c *crew) leave(name string) {
	c.t.Helper()
	c.in[name].close(c.t)
	delete(c.in, name)
}

func (c *crew) all() (is []*instance) {
	for _, i := range c.in {
		is = append(is, i)
	}
	return is
}

// owners says how many instances have each partition ready.
func (c *crew) owners() map[int32]string {
	out := map[int32]string{}
	for name, i := range c.in {
		for _, p := range i.Ledger().Partitions {
			if out[p.Partition] != "" {
				c.t.Errorf("%s and %s have partition %d", out[p.Partition], name, p.Partition)
			}
			out[p.Partition] = name
		}
	}
	return out
}

// settled waits until every partition is ready somewhere, and returns how long that took.
func (c *crew) settled(limit time.Duration) time.Duration {
	c.t.Helper()
	began := time.Now()
	for len(c.owners()) < int(c.tr.partitions) || c.rebuilding() > 0 {
		if time.Since(began) > limit {
			for name, i := range c.in {
				l := i.Ledger()
				failed := testutil.ToFloat64(i.metrics.sessions)
				c.t.Logf("%s has %d partitions, rebuilds %v, %v failed sessions", name, len(l.Partitions), l.Rebuilding, failed)
			}
			c.t.Fatalf("of %d partitions %d are ready after %s", c.tr.partitions, len(c.owners()), limit)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return time.Since(began)
}

func (c *crew) rebuilding() (n int) {
	for _, i := range c.in {
		n += len(i.Ledger().Rebuilding)
	}
	return n
}

// slow makes every rebuild from now on take at most so long, and the longest one nearly that, whatever is written later.
func (c *crew) slow(longest time.Duration) {
	c.t.Helper()
	c.longest = longest
	at, err := stream.CommittedOffsets(c.t.Context(), c.cfg.Kafka, c.cfg.Group, inputTopic[:]...)
	if err != nil {
		c.t.Fatal(err)
	}
	ends, err := stream.EndOffsets(c.t.Context(), c.cfg.Kafka, inputTopic[:]...)
	if err != nil {
		c.t.Fatal(err)
	}
	most := int64(1)
	for tp, o := range at {
		m, err := parseMetadata(o.Metadata)
		if err != nil {
			c.t.Fatal(err)
		}
		n := int64(0)
		for i, topic := range inputTopic {
			n += ends[stream.TopicPartition{Topic: topic, Partition: tp.Partition}] - m.RewindOffset[i]
		}
		most = max(most, n)
	}
	c.pause.Store(int64(longest) / most)
}

// Rebuilds take longer than every timeout of the group, while instances come and go in the middle of them. What does not move is
// joined all along; what moves is joined again one rebuild later; and the result is right.
func TestRebuildsOutlastEveryTimeout(t *testing.T) {
	streamtest.NeedFake(t)
	for _, partitions := range []int32{7, 8} {
		t.Run(fmt.Sprint(partitions, " partitions"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, stop := streamtest.StartVirtual(t, partitions)
				defer stop()
				c := newCrew(t, b, partitions)
				c.write()
				c.come("a")
				c.come("b")
				c.settled(time.Minute)
				for range 3 {
					c.write()
					time.Sleep(5 * time.Second)
				}
				const rebuild, more = 100 * time.Second, 30 * time.Second
				c.slow(rebuild)
				before := c.owners()
				c.come("c")
				time.Sleep(6 * time.Second)
				still := c.owners()
				if len(still) < int(partitions)*2/3 {
					t.Errorf("%d of %d partitions are joined while the third instance rebuilds its own", len(still), partitions)
				}
				for p, name := range still {
					if before[p] != name {
						t.Errorf("partition %d has moved from %s to %s without a rebuild", p, before[p], name)
					}
				}
				c.write()
				time.Sleep(2 * time.Second)
				c.come("d") // in the middle of the rebuilds of c
				took := c.settled(rebuild + more)
				t.Logf("after c and d: %s", took)
				c.write()
				c.leave("b")
				time.Sleep(45 * time.Second)
				c.come("b") // and comes back, in the middle of the rebuilds of those who took over
				time.Sleep(20 * time.Second)
				c.leave("d")
				c.write()
				t.Logf("after b went, came back, and d went: %s", c.settled(rebuild+more))
				for _, name := range []string{"e", "f", "g"} { // one after the other, each inside of the last one's rebalance
					c.come(name)
					time.Sleep(1500 * time.Millisecond)
				}
				t.Logf("after e, f and g: %s", c.settled(rebuild+more))
				c.longest = 0
				c.pause.Store(0)
				for c.wrote < crewSlices {
					c.write()
				}
				streamtest.Produce(t, c.cfg.Kafka, c.tr.punctuation(c.tr.endMS)...)
				l := settleWithin(t, c.cfg.Kafka, 10*time.Minute, c.all()...)
				c.tr.verify(t, c.cfg.Kafka, l)
				for name, i := range c.in {
					if n := testutil.ToFloat64(i.metrics.sessions); n != 0 {
						t.Errorf("%s started over %v times", name, n)
					}
					i.close(t)
				}
			})
		})
	}
}

// Going in good order costs no more than coming: nobody waits for the session of a static instance that has said good-bye.
func TestScalingInCostsASecond(t *testing.T) {
	streamtest.NeedFake(t)
	synctest.Test(t, func(t *testing.T) {
		b, stop := streamtest.StartVirtual(t, 8)
		defer stop()
		c := newCrew(t, b, 8)
		c.write()
		c.come("a")
		c.come("b")
		c.settled(time.Minute)
		for range 3 {
			c.write()
			time.Sleep(3 * time.Second)
			c.leave("b")
			if took := c.settled(time.Minute); took > 3*time.Second {
				t.Errorf("when the second instance had gone, its partitions were taken over after %s", took)
			}
			c.write()
			time.Sleep(3 * time.Second)
			c.come("b")
			time.Sleep(3 * time.Second)
			c.settled(time.Minute)
		}
		c.leave("a")
		c.leave("b")
	})
}
