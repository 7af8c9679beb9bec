package joiner

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kgo"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

// TestLeadersAndCoordinatorsMove: three brokers, between which the partitions' leaders and the coordinators of group and
// transactions move all the time, at any point of a transaction.
func TestLeadersAndCoordinatorsMove(t *testing.T) {
	b := streamtest.StartNodes(t, 3, 3)
	cfg := testConfig(b)
	tr := newTruth(41, cfg, 3, 6000, 10*time.Minute)
	r := rand.New(rand.NewPCG(41, 0))
	moves := 0
	i := start(t, cfg, func(s step) error {
		switch { // the steps of one instance are not concurrent, but for those of its partitions' outputs
		case s != stepPolled && s != stepCommit, moves == 60:
		case r.IntN(3) == 0:
			moves++
			b.Cluster.ShufflePartitionLeaders()
		case r.IntN(10) == 0:
			moves++
			b.Cluster.RehashCoordinators()
		}
		return nil
	})
	const parts = 6
	for k := range parts {
		streamtest.Produce(t, b.Config, tr.imps[k*len(tr.imps)/parts:(k+1)*len(tr.imps)/parts]...)
		streamtest.Produce(t, b.Config, tr.clks[k*len(tr.clks)/parts:(k+1)*len(tr.clks)/parts]...)
	}
	streamtest.Produce(t, b.Config, tr.punctuation(tr.endMS)...)
	l := settleWithin(t, b.Config, time.Minute, i)
	i.close(t)
	tr.verify(t, b.Config, l)
	if moves < 10 {
		t.Errorf("only %d moves", moves)
	}
}

// TestStaticMembersBounce: of two static members one stops in good order and starts again several times; the other one works for
// both meanwhile, and gives back then what it has taken over, which is what the first one has segments of.
func TestStaticMembersBounce(t *testing.T) {
	const partitions = 5
	b := streamtest.Start(t, partitions)
	cfg := testConfig(b)
	tr := newTruth(42, cfg, partitions, 5000, 10*time.Minute)
	cfg.InstanceID = "joiner-0"
	other := cfg
	other.InstanceID, other.TransactionalID = "joiner-1", "ctrloop-joiner-1"
	steady, bounced := start(t, cfg, nil), start(t, other, nil)
	taken := map[int32]bool{} // what the steady one had when both were there
	const parts = 5
	for k := range parts {
		streamtest.Produce(t, b.Config, tr.imps[k*len(tr.imps)/parts:(k+1)*len(tr.imps)/parts]...)
		streamtest.Produce(t, b.Config, tr.clks[k*len(tr.clks)/parts:(k+1)*len(tr.clks)/parts]...)
		settle(t, b.Config, steady, bounced)
		for _, p := range steady.Ledger().Partitions {
			if k > 1 && !taken[p.Partition] { // at first the larger share may change sides
				t.Errorf("partition %d moved over bounce %d", p.Partition, k)
			}
			taken[p.Partition] = true
		}
		if n := len(bounced.Ledger().Partitions); k == 0 && (n == 0 || n == partitions) {
			t.Fatalf("of %d partitions the second has %d", partitions, n)
		}
		if k < parts-1 {
			bounced.close(t)
			bounced = start(t, other, nil)
		}
	}
	streamtest.Produce(t, b.Config, tr.punctuation(tr.endMS)...)
	tr.verify(t, b.Config, settle(t, b.Config, steady, bounced))
	if n := testutil.ToFloat64(steady.metrics.sessions); n != 0 {
		t.Errorf("the steady one started over %v times", n)
	}
}

// TestAbortedBatchesInterleaved: an upstream that aborts leaves batches in the inputs that never happened, between and
// inside those that did, over a crash of the joiner too.
func TestAbortedBatchesInterleaved(t *testing.T) {
	b := streamtest.Start(t, 2)
	cfg := testConfig(b)
	tr := newTruth(43, cfg, 2, 2000, 10*time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cl, err := kgo.NewClient(
		kgo.SeedBrokers(b.Config.Brokers...),
		kgo.TransactionalID("upstream"),
		kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
	)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	write := func(end kgo.TransactionEndTry, rs []*stream.Record) {
		t.Helper()
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		copies := make([]*kgo.Record, len(rs))
		for i, r := range rs {
			copies[i] = &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Timestamp: r.Timestamp, Headers: r.Headers}
		}
		if err := cl.ProduceSync(ctx, copies...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := cl.EndTransaction(ctx, end); err != nil {
			t.Fatal(err)
		}
	}
	i := start(t, cfg, nil)
	const parts = 10
	for k := range parts {
		imps, clks := tr.imps[k*len(tr.imps)/parts:(k+1)*len(tr.imps)/parts], tr.clks[k*len(tr.clks)/parts:(k+1)*len(tr.clks)/parts]
		write(kgo.TryAbort, imps) // then the same again: what was aborted must not make it a duplicate
		write(kgo.TryAbort, tr.clks[len(tr.clks)/2:len(tr.clks)/2+50])
		write(kgo.TryCommit, append(append([]*stream.Record{}, imps...), clks...))
		write(kgo.TryAbort, clks)
		if k == parts/2 { // with an aborted batch inside what is rebuilt
			i.close(t)
			i = start(t, cfg, nil)
		}
	}
	streamtest.Produce(t, b.Config, tr.punctuation(tr.endMS)...)
	tr.verify(t, b.Config, settle(t, b.Config, i))
}

// TestRefusesAnInputMadeAnew: a topic of the same name is not the same topic.
func TestRefusesAnInputMadeAnew(t *testing.T) {
	b, cfg, _ := joined(t)
	if err := stream.DeleteTopics(t.Context(), b.Config, schemas.TopicImpressions); err != nil {
		t.Fatal(err)
	}
	if err := stream.EnsureTopics(t.Context(), b.Config, []schemas.Topic{{Name: schemas.TopicImpressions}}, 2, -1); err != nil {
		t.Fatal(err)
	}
	wantWords(t, refusal(t, cfg), "imp.v1/", "set another joiner.group")
	streamtest.Produce(t, b.Config, newTruth(3, cfg, 2, 1500, 3*time.Minute).imps...) // more records than there were
	wantWords(t, refusal(t, cfg), "set another joiner.group")
}

func TestRefusesMorePartitions(t *testing.T) {
	b, cfg, _ := joined(t)
	for _, topic := range []string{schemas.TopicImpressions, schemas.TopicClicks, schemas.TopicLabels} {
		if _, err := admin(t, b).CreatePartitions(t.Context(), 2, topic); err != nil {
			t.Fatal(err)
		}
	}
	wantWords(t, refusal(t, cfg), "have 4 partitions each", "made with 2", "set another joiner.group")
}
