package joiner

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"ctrloop/internal/broker/brokertest"
	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

// TestBrokerRestarts: the broker goes away several times under a working joiner and comes back with its disk.
func TestBrokerRestarts(t *testing.T) {
	dir := t.TempDir()
	b := brokertest.Start(t, dir)
	kafka := b.Config()
	if err := stream.EnsureTopics(t.Context(), kafka, schemas.Topics(), 3, -1); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(&streamtest.Broker{Config: kafka})
	tr := newTruth(21, cfg, 3, 6000, 10*time.Minute)
	i := start(t, cfg, nil)
	const parts = 4
	for k := range parts {
		streamtest.Produce(t, kafka, tr.imps[k*len(tr.imps)/parts:(k+1)*len(tr.imps)/parts]...)
		streamtest.Produce(t, kafka, tr.clks[k*len(tr.clks)/parts:(k+1)*len(tr.clks)/parts]...)
		if k == parts-1 {
			break
		}
		if k == 0 {
			i.close(t)
		}
		b.Stop()
		if k == 0 { // starts while there is no broker
			i = start(t, cfg, nil)
			for testutil.ToFloat64(i.metrics.sessions) == 0 {
				time.Sleep(5 * time.Millisecond)
			}
		}
		b = brokertest.Start(t, dir)
	}
	streamtest.Produce(t, kafka, tr.punctuation(tr.endMS)...)
	// A session that ended while there was no broker could not leave its group. The next one has its name and does not wait for it.
	tr.verify(t, kafka, settle(t, kafka, i))
}

// TestZombieIsFenced: an instance stands still with a complete transaction in hand, another one with the same
// ids takes over and finishes the work, and then the first one goes on as if nothing had happened.
func TestZombieIsFenced(t *testing.T) {
	b := streamtest.Start(t, 2)
	cfg := testConfig(b)
	cfg.InstanceID = "joiner-0" // static: the second takes the first one's place in the group at once
	tr := newTruth(22, cfg, 2, 3000, 10*time.Minute)
	streamtest.Produce(t, b.Config, append(tr.imps, tr.clks...)...)
	streamtest.Produce(t, b.Config, tr.punctuation(tr.endMS)...)
	var commits atomic.Int64
	var once sync.Once
	stalled, wake := make(chan struct{}), make(chan struct{})
	zombie := start(t, cfg, func(s step) error {
		if s == stepCommit && commits.Add(1) == 5 {
			once.Do(func() { close(stalled) })
			<-wake
		}
		return nil
	})
	<-stalled
	second := start(t, cfg, nil)
	l := settle(t, b.Config, second)
	zombie.stop() // once its stalled transaction has ended it stays away
	close(wake)
	zombie.close(t)
	tr.verify(t, b.Config, l)
}

// TestAbortsWithoutEnd: a broker that refuses every record must not make the joiner spin, and when it
// recovers everything is there once.
func TestAbortsWithoutEnd(t *testing.T) {
	streamtest.NeedFake(t)
	b := streamtest.Start(t, 1)
	cfg := testConfig(b)
	tr := newTruth(23, cfg, 1, 500, 5*time.Minute)
	streamtest.Produce(t, b.Config, append(append(tr.imps, tr.clks...), tr.punctuation(tr.endMS)...)...)
	h := b.Cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.InvalidRecord, Count: -1})
	i := start(t, cfg, nil)
	for n := 0; testutil.ToFloat64(i.metrics.sessions) == 0; n++ {
		if n > 2000 {
			t.Fatal("the session never ended")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if a := testutil.ToFloat64(i.metrics.aborts); a < maxAborts {
		t.Errorf("%v aborts, want %d before the session ends", a, maxAborts)
	}
	h.Remove()
	tr.verify(t, b.Config, settle(t, b.Config, i))
}

// TestJumpClosesInSlices: nothing has closed for a whole window, then the inputs promise that all of it is over and fall
// silent. No transaction does more than its share, and one that dies on the way is gone on with from where it was,
// though no record comes any more.
func TestJumpClosesInSlices(t *testing.T) {
	for name, segments := range map[string]bool{"from the topics": false, "from segments": true} {
		t.Run(name, func(t *testing.T) {
			b := streamtest.Start(t, 3)
			cfg := testConfig(b)
			cfg.MaxPoll = 200
			if segments {
				cfg.Segments = Segments{Dir: t.TempDir(), Interval: time.Millisecond}
				cfg.MemoryLimit = 1
			}
			tr := newTruth(24, cfg, 3, 4000, 50*time.Second)
			streamtest.Produce(t, b.Config, append(slices.Clone(tr.imps), tr.clks...)...)
			i := start(t, cfg, nil)
			open := settle(t, b.Config, i).Total.Open
			i.close(t)
			streamtest.Produce(t, b.Config, tr.punctuation(tr.endMS)...)
			var mu sync.Mutex
			most, outputs, transactions, crashes := 0, 0, 0, 0
			i = start(t, cfg, func(s step) error {
				mu.Lock()
				defer mu.Unlock()
				switch s {
				case stepPolled:
					outputs = 0
				case stepProducing:
					outputs++
					most = max(most, outputs)
				case stepRebuild:
				case stepCommit, stepCommitted:
					if transactions++; transactions == 3+4*crashes && crashes < 4 { // before a commit, and after one
						crashes++
						return errCrash
					}
				}
				return nil
			})
			l := settle(t, b.Config, i)
			if l.Total.Open != 0 || crashes != 4 {
				t.Errorf("%d open, %d crashes", l.Total.Open, crashes)
			}
			// A bucket of each partition more, corrections, sums for the audit.
			if limit := 2*cfg.MaxPoll + 200; most > limit || open < 4*uint64(limit) {
				t.Errorf("%d outputs in one transaction, want at most %d; %d were open", most, limit, open)
			}
			tr.verify(t, b.Config, l)
		})
	}
}
