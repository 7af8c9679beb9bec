package joiner

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(streamtest.M{M: m, After: removeBinary}) }

func testConfig(b *streamtest.Broker) Config {
	c := Default()
	c.Kafka = b.Config
	c.Window, c.Lateness, c.Bucket = time.Minute, 5*time.Second, time.Second
	c.CommitInterval = 0
	c.MaxPoll = 400 // many transactions from little data
	return c
}

// instance is a joiner that a test runs, with what may break it.
type instance struct {
	*Service
	done chan error
	stop context.CancelFunc
}

func testLog(t testing.TB) zerolog.Logger {
	if testing.Verbose() {
		return zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)
	}
	return zerolog.Nop()
}

func start(t testing.TB, cfg Config, fault func(step) error) *instance {
	t.Helper()
	i := prepare(t, cfg, fault)
	i.begin(t)
	return i
}

// prepare makes an instance that does not run yet.
func prepare(t testing.TB, cfg Config, fault func(step) error) *instance {
	t.Helper()
	s, err := New(cfg, testLog(t), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	if fault != nil {
		s.broker = faulty{s.broker, fault}
	}
	s.backoff = time.Millisecond
	return &instance{Service: s, done: make(chan error, 1)}
}

func (i *instance) begin(t testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	i.stop = cancel
	go func() { i.done <- i.Run(ctx) }()
	t.Cleanup(func() { i.close(t) })
}

func (i *instance) close(t testing.TB) {
	i.stop()
	if err := <-i.done; err != nil {
		t.Errorf("stopped with %v", err)
	}
	i.done <- nil // for a second close
}

// settle waits until the instances have joined everything that is in the topics, and returns their ledger.
func settle(t testing.TB, kafka stream.Config, is ...*instance) Ledger {
	t.Helper()
	patience := 30 * time.Second
	if streamtest.Ring() { // a real broker has timeouts of its own, up to that of a transaction
		patience *= 4
	}
	return settleWithin(t, kafka, patience, is...)
}

func settleWithin(t testing.TB, kafka stream.Config, patience time.Duration, is ...*instance) Ledger {
	t.Helper()
	ends, err := stream.EndOffsets(t.Context(), kafka, inputTopic[:]...)
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		var all Ledger
		all.Balanced = true
		left := len(ends)
		owners := map[int32]int{} // an instance that was thrown out may not know it yet
		for _, i := range is {
			l := i.Ledger()
			all.Partitions = append(all.Partitions, l.Partitions...)
			all.Total = all.Total.Add(l.Total)
			all.Balanced = all.Balanced && l.Balanced
			for _, p := range l.Partitions {
				if owners[p.Partition]++; owners[p.Partition] > 1 || p.Closing {
					left += len(ends) // not yet
				}
				for in, at := range []int64{p.ImpressionsAt, p.ClicksAt} {
					if at == ends[stream.TopicPartition{Topic: inputTopic[in], Partition: p.Partition}] {
						left--
					}
				}
			}
		}
		if left == 0 {
			return all
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("not done in time: %+v", is[0].Ledger())
	return Ledger{}
}

// A context may end by its deadline as well as by being cancelled.
func TestRunEndsAtADeadline(t *testing.T) {
	b := streamtest.Start(t, 1)
	i := prepare(t, testConfig(b), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := i.Run(ctx); err != nil {
		t.Error(err)
	}
}

func TestJoinsABacklog(t *testing.T) {
	b := streamtest.Start(t, 3)
	cfg := testConfig(b)
	tr := newTruth(1, cfg, 3, 6000, 10*time.Minute)
	streamtest.Produce(t, b.Config, append(append(slices.Clone(tr.imps), tr.clks...), tr.poisons()...)...)
	streamtest.Produce(t, b.Config, tr.punctuation(tr.endMS)...)
	i := start(t, cfg, nil)
	l := settle(t, b.Config, i)
	tr.verify(t, b.Config, l)
	if l.Total.Open+l.Total.Pending != 0 || l.Total.Positive == 0 || l.Total.Corrected == 0 || l.Total.OrphanExpired == 0 {
		t.Errorf("the history did not exercise the join, or did not close: %+v", l.Total)
	}
	t.Logf("%s: %+v", tr, l.Total)
}

var errCrash = errors.New("injected crash")

// TestCrashAtEveryStep breaks off at a step of the transaction, several times, at the first occurrence and at
// random ones later.
func TestCrashAtEveryStep(t *testing.T) {
	for _, at := range []step{stepPolled, stepProducing, stepCommit, stepCommitted, stepRebuild} {
		t.Run(string(at), func(t *testing.T) {
			t.Parallel()
			var crashes, transactions atomic.Int64
			var mu sync.Mutex
			r := rand.New(rand.NewPCG(9, uint64(len(at))))
			// A replay and the outputs have a step per record, the others one per transaction.
			odds := map[step]int{stepPolled: 4, stepProducing: 400, stepCommit: 4, stepCommitted: 4, stepRebuild: 600}[at]
			run(t, uint64(len(at)), func(s step) error {
				mu.Lock()
				defer mu.Unlock()
				if s == stepCommitted && transactions.Add(1)%4 == 0 && at == stepRebuild {
					return errCrash // to have rebuilds at all
				}
				if s == at && crashes.Load() < 12 && (crashes.Load() == 0 || r.IntN(odds) == 0) {
					crashes.Add(1)
					return errCrash
				}
				return nil
			}, nil)
			if crashes.Load() < 3 {
				t.Errorf("only %d crashes", crashes.Load())
			}
		})
	}
}

// TestCrashAnywhere mixes all steps.
func TestCrashAnywhere(t *testing.T) {
	for seed := range uint64(3) {
		var mu sync.Mutex
		r := rand.New(rand.NewPCG(seed, 1))
		crashes := 0
		run(t, 100+seed, func(s step) error {
			mu.Lock()
			defer mu.Unlock()
			odds := 8
			if s == stepProducing || s == stepRebuild {
				odds = 2000
			}
			if crashes < 25 && r.IntN(odds) == 0 {
				crashes++
				return errCrash
			}
			return nil
		}, nil)
		if crashes < 5 {
			t.Errorf("only %d crashes", crashes)
		}
	}
}

// run joins a history that is written in slices while the joiner suffers, and verifies the result.
func run(t *testing.T, seed uint64, fault func(step) error, brokers func(*streamtest.Broker, *Config)) *instance {
	t.Helper()
	b := streamtest.Start(t, 3)
	cfg := testConfig(b)
	if seed%2 == 0 { // the same with all that is sealed on disk
		cfg.Segments = Segments{Dir: t.TempDir(), Interval: time.Millisecond}
		cfg.MemoryLimit = 1
	}
	if brokers != nil {
		brokers(b, &cfg)
	}
	tr := newTruth(seed, cfg, 3, 6000, 10*time.Minute)
	i := start(t, cfg, fault)
	const slices = 10
	for k := range slices {
		ni, nc := len(tr.imps), len(tr.clks)
		streamtest.Produce(t, b.Config, tr.imps[k*ni/slices:(k+1)*ni/slices]...)
		streamtest.Produce(t, b.Config, tr.clks[k*nc/slices:(k+1)*nc/slices]...)
	}
	streamtest.Produce(t, b.Config, tr.punctuation(tr.endMS)...)
	tr.verify(t, b.Config, settle(t, b.Config, i))
	return i
}

// TestBrokerFaults lets the broker answer with errors, some of them lies: the request was carried out.
func TestBrokerFaults(t *testing.T) {
	streamtest.NeedFake(t)
	for _, f := range []struct {
		name string
		key  kmsg.Key
		err  *kerr.Error
		n    int
		want string // how the joiner takes it: undo, rebuild, or the client mends it alone
	}{
		{"EndTxn unknown server error", kmsg.EndTxn, kerr.UnknownServerError, 4, "undo"},
		{"EndTxn coordinator not available", kmsg.EndTxn, kerr.CoordinatorNotAvailable, 3, ""},
		{"EndTxn concurrent transactions", kmsg.EndTxn, kerr.ConcurrentTransactions, 5, ""},
		{"offsets rebalance in progress", kmsg.TxnOffsetCommit, kerr.RebalanceInProgress, 4, "undo"},
		{"offsets timed out but stored", kmsg.TxnOffsetCommit, kerr.RequestTimedOut, 3, "rebuild"},
		{"produce not leader", kmsg.Produce, kerr.NotLeaderForPartition, 2, ""},
		{"produce timed out but written", kmsg.Produce, kerr.RequestTimedOut, 6, ""},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			var h *kfake.FaultHandle
			i := run(t, uint64(len(f.name)), nil, func(b *streamtest.Broker, _ *Config) {
				h = b.Cluster.Fault(kfake.Fault{Keys: []kmsg.Key{f.key}, Err: f.err, Count: f.n})
			})
			undone, rebuilt := testutil.ToFloat64(i.metrics.aborts), testutil.ToFloat64(i.metrics.sessions)
			if h.Hits() == 0 || undone > 0 != (f.want == "undo") || rebuilt > 0 != (f.want == "rebuild") {
				t.Errorf("met %d times, undone %v times, rebuilt %v times, want %q", h.Hits(), undone, rebuilt, f.want)
			}
		})
	}
}

// TestEndTxnAnswerLost: the broker commits, and the connection dies before its answer.
func TestEndTxnAnswerLost(t *testing.T) {
	var cuts atomic.Int64
	run(t, 77, nil, func(_ *streamtest.Broker, c *Config) { c.Kafka.Dial = losingAnswers(&cuts, 6) })
	if cuts.Load() == 0 {
		t.Error("no answer was lost")
	}
}

// TestRestartOnTheSameGroup stops the process in the middle of open windows: the ledger goes on where it was.
func TestRestartOnTheSameGroup(t *testing.T) {
	b := streamtest.Start(t, 3)
	cfg := testConfig(b)
	tr := newTruth(5, cfg, 3, 4000, 10*time.Minute)
	for k := range 4 {
		streamtest.Produce(t, b.Config, tr.imps[k*len(tr.imps)/4:(k+1)*len(tr.imps)/4]...)
		streamtest.Produce(t, b.Config, tr.clks[k*len(tr.clks)/4:(k+1)*len(tr.clks)/4]...)
		if k == 3 {
			streamtest.Produce(t, b.Config, tr.punctuation(tr.endMS)...)
		}
		i := start(t, cfg, nil)
		l := settle(t, b.Config, i)
		if err := l.Total.Check(); err != nil || !l.Balanced {
			t.Fatalf("after part %d: %v", k, err)
		}
		if k == 3 {
			tr.verify(t, b.Config, l)
		}
		i.close(t)
	}
}

// TestPartitionsMove: a second instance joins and leaves while the first one works.
func TestPartitionsMove(t *testing.T) {
	const partitions = 5 // odd: the members get different shares
	b := streamtest.Start(t, partitions)
	cfg := testConfig(b)
	tr := newTruth(6, cfg, partitions, 6000, 10*time.Minute)
	first := start(t, cfg, nil)
	other := cfg
	other.TransactionalID = "ctrloop-joiner-1"
	var second *instance
	for k := range 6 {
		streamtest.Produce(t, b.Config, tr.imps[k*len(tr.imps)/6:(k+1)*len(tr.imps)/6]...)
		streamtest.Produce(t, b.Config, tr.clks[k*len(tr.clks)/6:(k+1)*len(tr.clks)/6]...)
		switch k {
		case 1, 3:
			second = start(t, other, nil)
			settle(t, b.Config, first, second)
			if n := len(second.Ledger().Partitions); n == 0 {
				t.Log("the second instance got nothing before the first had finished")
			}
		case 2, 4:
			second.close(t)
		}
	}
	streamtest.Produce(t, b.Config, tr.punctuation(tr.endMS)...)
	tr.verify(t, b.Config, settle(t, b.Config, first))
}

// TestAligns: an input that runs ahead is paused, and everything is joined all the same.
func TestAligns(t *testing.T) {
	b := streamtest.Start(t, 1)
	cfg := testConfig(b)
	cfg.MaxLead = 10 * time.Second
	tr := newTruth(8, cfg, 1, 4000, 10*time.Minute)
	streamtest.Produce(t, b.Config, tr.clks...) // the clicks' side has everything before the first impression
	i := start(t, cfg, nil)
	paused := func() bool {
		for _, p := range i.Ledger().Partitions {
			if slices.Contains(p.Paused, schemas.TopicClicks) {
				return true
			}
		}
		return false
	}
	for n := 0; !paused(); n++ {
		if n > 2000 {
			t.Fatal("the clicks were never paused")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if p := i.Ledger().Total.Pending; p > uint64(cfg.MaxPoll) {
		t.Errorf("%d clicks wait, one transaction brings %d", p, cfg.MaxPoll)
	}
	streamtest.Produce(t, b.Config, tr.imps...)
	streamtest.Produce(t, b.Config, tr.punctuation(tr.endMS)...)
	tr.verify(t, b.Config, settle(t, b.Config, i))
}
