package stage

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"ctrloop/internal/broker/brokertest"
	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/pairer/evidence"
	"ctrloop/pairer/evidence/evidencetest"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(streamtest.M{M: m}) }

func testConfig(kafka stream.Config) Config {
	c := Default()
	c.Kafka = kafka
	c.Join = Join{Window: time.Minute, Correction: time.Minute, Lateness: 5 * time.Second, Bucket: time.Second}
	c.CommitInterval = 0
	c.MaxPoll = 100 // many transactions from little data
	return c
}

// truth is a history of labels, and what it must come to.
type truth struct {
	labels []evidencetest.Label
	wrote  int
	slices int
	kafka  stream.Config
}

// newTruth draws a history whose labels lie where their keys belong. It ends with a robot's label in each partition, long after the
// others: everything is mature then.
func newTruth(kafka stream.Config, seed uint64, partitions int32, n, slices int) *truth {
	times := evidencetest.Times{WindowMS: 60_000, CorrectionMS: 60_000, BucketMS: 1_000}
	labels := evidencetest.History(seed, times, partitions, n, 4*time.Hour)
	for i := range labels {
		labels[i].Partition = stream.PartitionOf(labels[i].ID[:], partitions)
	}
	end := labels[len(labels)-1].WatermarkMS + 3_600_000
	for found, i := map[int32]bool{}, byte(0); len(found) < int(partitions); i++ {
		id := schemas.NewImpressionID(time.UnixMilli(end-61_000), [10]byte{i})
		p := stream.PartitionOf(id[:], partitions)
		if found[p] {
			continue
		}
		found[p] = true
		labels = append(labels, evidencetest.Label{
			ID: id, Seen: &eventpb.Impression{Id: id[:], Bot: true}, Kind: eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, Version: 1,
			WatermarkMS: end, Partition: p,
		})
	}
	return &truth{labels: labels, slices: slices, kafka: kafka}
}

// write writes the next slice.
func (tr *truth) write(t testing.TB) {
	t.Helper()
	from := tr.wrote * len(tr.labels) / tr.slices
	tr.wrote++
	var rs []*stream.Record
	for _, l := range tr.labels[from : tr.wrote*len(tr.labels)/tr.slices] {
		rs = append(rs, &stream.Record{Topic: schemas.TopicLabels, Key: l.ID[:], Value: l.Encode(), Timestamp: l.ID.Time()})
	}
	streamtest.Produce(t, tr.kafka, rs...)
}

// verify reads evidence.v1 and counts the labels by itself.
func (tr *truth) verify(t testing.TB, l Ledger) {
	t.Helper()
	streamtest.AwaitNoTransaction(t, tr.kafka, schemas.TopicEvidence)
	f := evidence.NewFold()
	for p, rs := range streamtest.Records(t, tr.kafka, schemas.TopicEvidence) {
		for _, r := range rs {
			if err := f.Apply(p, r.Key, r.Value); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := map[evidence.Key]evidencetest.Count{}
	for _, r := range f.Rows() {
		got[r.Key] = evidencetest.Count{
			Category: r.Category, Trusted: evidencetest.Sums(r.Counted), Suspect: evidencetest.Sums(r.Held), FirstMS: r.FirstMS, LastMS: r.LastMS,
		}
	}
	want := map[evidence.Key]evidencetest.Count{}
	for k, c := range evidencetest.CountAll(tr.labels, nil) {
		if c.Trusted != (evidencetest.Sums{}) || c.Suspect != (evidencetest.Sums{}) {
			want[evidence.Key(k)] = c
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("(-counted +evidence.v1): %s", d)
	}
	if err := l.Total.Check(); err != nil || !l.Balanced || l.Total.In != uint64(len(tr.labels)) {
		t.Errorf("%v: %+v of %d labels", err, l.Total, len(tr.labels))
	}
	if l.Total.Flipped == 0 || l.Total.Unsure+l.Total.Reopened+l.Total.Forced > 0 {
		t.Errorf("the history is not what it should be: %+v", l.Total)
	}
}

// instance is a stage that a test runs, with what may break it.
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

func prepare(t testing.TB, cfg Config, fault func(step) error) *instance {
	t.Helper()
	s, err := New(cfg, testLog(t), prometheus.NewRegistry(), func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	if fault != nil {
		s.broker = faulty{s.broker, fault}
	}
	s.backoff = time.Millisecond
	return &instance{Service: s, done: make(chan error, 1)}
}

func start(t testing.TB, cfg Config, fault func(step) error) *instance {
	t.Helper()
	i := prepare(t, cfg, fault)
	ctx, cancel := context.WithCancel(context.Background())
	i.stop = cancel
	go func() { i.done <- i.Run(ctx) }()
	t.Cleanup(func() { i.close(t) })
	return i
}

func (i *instance) close(t testing.TB) {
	i.stop()
	if err := <-i.done; err != nil {
		t.Errorf("stopped with %v", err)
	}
	i.done <- nil // for a second close
}

// settle waits until the instances have counted everything that is in the topic, and returns their ledger.
func settle(t testing.TB, kafka stream.Config, is ...*instance) Ledger {
	t.Helper()
	ends, err := stream.EndOffsets(t.Context(), kafka, schemas.TopicLabels)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		all, owners, left := Ledger{Balanced: true}, map[int32]int{}, len(ends)
		for _, i := range is {
			l := i.Ledger()
			all.Partitions, all.Total, all.Balanced = append(all.Partitions, l.Partitions...), all.Total.Add(l.Total), all.Balanced && l.Balanced
			for _, p := range l.Partitions {
				if owners[p.Partition]++; owners[p.Partition] > 1 {
					left += len(ends) // one was thrown out and does not know it yet
				}
				if p.LabelsAt == ends[stream.TopicPartition{Topic: schemas.TopicLabels, Partition: p.Partition}] {
					left--
				}
			}
		}
		if left == 0 {
			return all
		}
	}
	t.Fatalf("not done in time: %+v", is[0].Ledger())
	return Ledger{}
}

var errCrash = errors.New("injected crash")

// run counts a history that is written in slices while the stage suffers, and verifies the result.
func run(t *testing.T, seed uint64, fault func(step) error, brokers func(*streamtest.Broker)) *instance {
	t.Helper()
	b := streamtest.Start(t, 3)
	if brokers != nil {
		brokers(b)
	}
	tr := newTruth(b.Config, seed, 3, 4000, 10)
	i := start(t, testConfig(b.Config), fault)
	for tr.wrote < tr.slices {
		tr.write(t)
	}
	tr.verify(t, settle(t, b.Config, i))
	return i
}

func TestCountsABacklog(t *testing.T) {
	b := streamtest.Start(t, 3)
	tr := newTruth(b.Config, 1, 3, 4000, 1)
	tr.write(t)
	i := start(t, testConfig(b.Config), nil)
	tr.verify(t, settle(t, b.Config, i))
	if n, err := testutil.GatherAndCount(prometheusOf(t, i), "ctrloop_evidence_labels_total"); err != nil || n != 3*12 {
		t.Errorf("%d series of labels, want those of three partitions: %v", n, err)
	}
}

func prometheusOf(t *testing.T, i *instance) *prometheus.Registry {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(&i.ledgers)
	return reg
}

// TestCrashAtEveryStep breaks off at a step of the transaction or of a rebuild, several times.
func TestCrashAtEveryStep(t *testing.T) {
	for _, at := range []step{stepPolled, stepProducing, stepCommit, stepCommitted, stepRebuild} {
		t.Run(string(at), func(t *testing.T) {
			t.Parallel()
			var crashes, transactions atomic.Int64
			var mu sync.Mutex
			r := rand.New(rand.NewPCG(9, uint64(len(at))))
			odds := map[step]int{stepPolled: 4, stepProducing: 400, stepCommit: 4, stepCommitted: 4, stepRebuild: 300}[at]
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

// TestBrokerFaults lets the broker answer with errors, some of them lies: the request was carried out.
func TestBrokerFaults(t *testing.T) {
	streamtest.NeedFake(t)
	for _, f := range []struct {
		name string
		key  kmsg.Key
		err  *kerr.Error
		n    int
		want string // how the stage takes it: undo, rebuild, or the client mends it alone
	}{
		{"EndTxn unknown server error", kmsg.EndTxn, kerr.UnknownServerError, 4, "undo"},
		{"EndTxn concurrent transactions", kmsg.EndTxn, kerr.ConcurrentTransactions, 5, ""},
		{"offsets rebalance in progress", kmsg.TxnOffsetCommit, kerr.RebalanceInProgress, 4, "undo"},
		{"offsets timed out but stored", kmsg.TxnOffsetCommit, kerr.RequestTimedOut, 3, "rebuild"},
		{"produce timed out but written", kmsg.Produce, kerr.RequestTimedOut, 6, ""},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			var h *kfake.FaultHandle
			i := run(t, uint64(len(f.name)), nil, func(b *streamtest.Broker) {
				h = b.Cluster.Fault(kfake.Fault{Keys: []kmsg.Key{f.key}, Err: f.err, Count: f.n})
			})
			undone, rebuilt := testutil.ToFloat64(i.metrics.aborts), testutil.ToFloat64(i.metrics.sessions)
			if h.Hits() == 0 || undone > 0 != (f.want == "undo") || rebuilt > 0 != (f.want == "rebuild") {
				t.Errorf("met %d times, undone %v times, rebuilt %v times, want %q", h.Hits(), undone, rebuilt, f.want)
			}
		})
	}
}

// TestRefusedAppends: a broker that refuses every record must not make the stage spin, and when it recovers everything is there
// once.
func TestRefusedAppends(t *testing.T) {
	streamtest.NeedFake(t)
	b := streamtest.Start(t, 2)
	tr := newTruth(b.Config, 23, 2, 1500, 1)
	tr.write(t)
	h := b.Cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.InvalidRecord, Count: -1})
	i := start(t, testConfig(b.Config), nil)
	for n := 0; testutil.ToFloat64(i.metrics.sessions) == 0; n++ {
		if n > 4000 {
			t.Fatal("the session never ended")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if a := testutil.ToFloat64(i.metrics.aborts); a < maxAborts {
		t.Errorf("%v aborts, want %d before the session ends", a, maxAborts)
	}
	h.Remove()
	tr.verify(t, settle(t, b.Config, i))
}

// TestPartitionsMove: a second instance joins and leaves while the first one works.
func TestPartitionsMove(t *testing.T) {
	const partitions = 5
	b := streamtest.Start(t, partitions)
	cfg := testConfig(b.Config)
	tr := newTruth(b.Config, 6, partitions, 5000, 6)
	first := start(t, cfg, nil)
	other := cfg
	other.TransactionalID = "ctrloop-evidence-1"
	var second *instance
	for k := range 6 {
		tr.write(t)
		switch k {
		case 1, 3:
			second = start(t, other, nil)
			settle(t, b.Config, first, second)
			for deadline := time.Now().Add(time.Minute); len(second.Ledger().Partitions) == 0; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the second instance got nothing")
				}
			}
			if got := streamtest.Members(t, b.Config, cfg.Group); !slices.Equal(got, []string{cfg.TransactionalID, other.TransactionalID}) {
				t.Errorf("members %q", got)
			}
		case 2, 4:
			second.close(t)
		}
	}
	tr.verify(t, settle(t, b.Config, first))
}

// TestZombieIsFenced: an instance stands still with a complete transaction in hand, another one with the same ids takes over and
// finishes the work, and then the first one goes on as if nothing had happened.
func TestZombieIsFenced(t *testing.T) {
	b := streamtest.Start(t, 2)
	cfg := testConfig(b.Config)
	tr := newTruth(b.Config, 22, 2, 3000, 1)
	tr.write(t)
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
	tr.verify(t, l)
}

// TestRealBroker: the embedded broker is killed under a working stage, and the stage is stopped and started again.
func TestRealBroker(t *testing.T) {
	b := brokertest.Start(t, t.TempDir())
	if err := stream.EnsureTopics(t.Context(), b.Config(), schemas.Topics(), 3, -1); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(b.Config())
	tr := newTruth(b.Config(), 31, 3, 4000, 4)
	i := start(t, cfg, nil)
	tr.write(t)
	brokertest.Crash(t, b)
	tr.write(t)
	i.close(t)
	tr.write(t)
	i = start(t, cfg, nil)
	tr.write(t)
	tr.verify(t, settle(t, b.Config(), i))
}

// refusal runs a stage that must refuse, and returns why.
func refusal(t *testing.T, cfg Config) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := prepare(t, cfg, nil).Run(ctx)
	if !errors.Is(err, ErrRefused) {
		t.Fatalf("ran, and ended with %v", err)
	}
	return err.Error()
}

func wantWords(t *testing.T, got string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(got, w) {
			t.Errorf("%q does not say %q", got, w)
		}
	}
}

// TestRefusals: what would lose evidence or count it twice is refused, with the way out.
func TestRefusals(t *testing.T) {
	counted := func(t *testing.T) (*streamtest.Broker, Config, *truth) {
		b := streamtest.Start(t, 2)
		cfg := testConfig(b.Config)
		tr := newTruth(b.Config, 3, 2, 800, 1)
		tr.write(t)
		i := start(t, cfg, nil)
		settle(t, b.Config, i)
		i.close(t)
		return b, cfg, tr
	}
	remake := func(t *testing.T, b *streamtest.Broker, topic string) {
		if err := stream.DeleteTopics(t.Context(), b.Config, topic); err != nil {
			t.Fatal(err)
		}
		if err := stream.EnsureTopics(t.Context(), b.Config, schemas.Topics(), 2, -1); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("another group", func(t *testing.T) {
		_, cfg, _ := counted(t)
		cfg.Group = "another"
		wantWords(t, refusal(t, cfg), "holds evidence", "set pairer.evidence.group back")
	})
	t.Run("labels made anew", func(t *testing.T) {
		b, cfg, _ := counted(t)
		remake(t, b, schemas.TopicLabels)
		wantWords(t, refusal(t, cfg), "delete the topic evidence.v1")
	})
	t.Run("evidence made anew", func(t *testing.T) {
		b, cfg, tr := counted(t)
		remake(t, b, schemas.TopicEvidence)
		wantWords(t, refusal(t, cfg), "evidence.v1 was made anew", "set another pairer.evidence.group")
		cfg.Group = "another"
		i := start(t, cfg, nil)
		tr.verify(t, settle(t, b.Config, i))
	})
	t.Run("the same labels once more", func(t *testing.T) {
		b, cfg, tr := counted(t)
		tr.wrote = 0
		tr.write(t)
		wantWords(t, refusal(t, cfg), "the join has begun anew", "delete the topic evidence.v1")
		_ = b
	})
	t.Run("evidence that is gone", func(t *testing.T) {
		b, cfg, _ := counted(t)
		ends, err := stream.EndOffsets(t.Context(), b.Config, schemas.TopicEvidence)
		if err != nil {
			t.Fatal(err)
		}
		for tp, end := range ends {
			streamtest.DeleteRecords(t, b.Config, tp.Topic, tp.Partition, end)
		}
		wantWords(t, refusal(t, cfg), "evidence.v1", "delete the topic evidence.v1")
	})
	t.Run("labels that are gone", func(t *testing.T) {
		b, cfg, tr := counted(t)
		tr.wrote = 0
		tr.write(t)
		ends, err := stream.EndOffsets(t.Context(), b.Config, schemas.TopicLabels)
		if err != nil {
			t.Fatal(err)
		}
		for tp, end := range ends {
			streamtest.DeleteRecords(t, b.Config, tp.Topic, tp.Partition, end)
		}
		wantWords(t, refusal(t, cfg), "labels.v1", "retention", "delete the topic evidence.v1")
	})
	t.Run("another number of partitions", func(t *testing.T) {
		two := schemas.Topic{Name: schemas.TopicEvidence, Partitions: 2, Compacted: true}
		b := streamtest.StartTopics(t, 3, two, schemas.Topic{Name: schemas.TopicLabels})
		wantWords(t, refusal(t, testConfig(b.Config)), "labels.v1 has 3 partitions, evidence.v1 2")
	})
}

func TestMetadataComesBack(t *testing.T) {
	m := metadata{Partitions: 4, Labels: "aa", Evidence: "bb"}
	m.State = evidence.State{Sequence: 1, Start: 2, Next: 3, WatermarkMS: 4, SinceMS: 8, FloorMS: 5, DoubtMS: 6, Rewind: 7, Hash: 1 << 63}
	for i, c := range m.Ledger.Counts() {
		*c = uint64(100 + i)
	}
	got, err := parseMetadata(m.String())
	if err != nil || got != m {
		t.Errorf("%+v (%v), want %+v", got, err, m)
	}
	for _, s := range []string{"", "j4 1 2", m.String() + " 1", strings.Replace(m.String(), "aa bb 4", "aa bb x", 1)} {
		if _, err := parseMetadata(s); !errors.Is(err, errMetadata) {
			t.Errorf("%q: %v", s, err)
		}
	}
}
