package stream_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"

	"ctrloop/internal/broker/brokertest"
	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

// transaction opens a transaction under the id "t" and writes the values to partition 0 of topic "out".
func transaction(t *testing.T, ctx context.Context, c stream.Config, values ...string) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.Brokers...), kgo.TransactionalID("t"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	for _, v := range values {
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "out", Value: []byte(v)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	return cl
}

func values(t *testing.T, c stream.Config, topic string) []string {
	t.Helper()
	var out []string
	for _, r := range streamtest.Records(t, c, topic)[0] {
		out = append(out, string(r.Value))
	}
	return out
}

// TestCrashEndsOpenTransactions kills the broker three times inside a transaction of one producer. What was open stays out for
// good, and what the producer commits later is read by everybody: neither may depend on the size of a fetch or on how often
// the broker has started since.
func TestCrashEndsOpenTransactions(t *testing.T) {
	ctx := testContext(t)
	b := brokertest.Start(t, t.TempDir())
	if err := stream.EnsureTopics(ctx, b.Config(), []schemas.Topic{{Name: "out"}}, 1, -1); err != nil {
		t.Fatal(err)
	}
	var want []string
	for round := range 3 {
		open := transaction(t, ctx, b.Config(), fmt.Sprintf("open %d", round))
		brokertest.Kill(t, b)
		open.Close()
		if err := b.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprintf("committed %d", round))
		done := transaction(t, ctx, b.Config(), want[round])
		if err := done.EndTransaction(ctx, kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
		streamtest.AwaitNoTransaction(t, b.Config(), "out")
		if got := values(t, b.Config(), "out"); !cmp.Equal(got, want) {
			t.Fatalf("round %d: %q, want %q", round, got, want)
		}
	}
}

// TestKillNineKeepsWhatWasAcknowledged kills the broker with SIGKILL while a transaction is open.
func TestKillNineKeepsWhatWasAcknowledged(t *testing.T) {
	ctx := testContext(t)
	b := brokertest.Start(t, t.TempDir())
	conf := b.Config()
	const n = 1000
	if err := stream.EnsureTopics(ctx, conf, []schemas.Topic{{Name: "in"}, {Name: "out"}}, 2, -1); err != nil {
		t.Fatal(err)
	}
	streamtest.Produce(t, conf, inputs("in", 0, n)...)
	if _, _, err := (copier{conf: conf, id: "t", max: 300}).run(ctx, 400); err != nil {
		t.Fatal(err)
	}
	_, _, err := copier{conf: conf, id: "t", max: 300, beforeCommit: func() bool {
		brokertest.Kill(t, b)
		return false
	}}.run(ctx, n)
	if err == nil {
		t.Fatal("the crash did not happen")
	}
	if err := b.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if _, _, err := (copier{conf: conf, id: "t", max: 300}).run(ctx, remaining(t, ctx, conf, n)); err != nil {
		t.Fatal(err)
	}
	streamtest.AwaitNoTransaction(t, conf, "out")
	checkCopied(t, conf, n)
}
