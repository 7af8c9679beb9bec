package stream_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

// image copies what a broker has written so far, while it runs: what kill -9 at this moment would leave.
func image(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(filepath.Join(to, "log"), os.DirFS(filepath.Join(dir, "log"))); err != nil {
		t.Fatal(err)
	}
	return to
}

func startOn(t *testing.T, dir string) *stream.Embedded {
	t.Helper()
	e, err := stream.StartEmbedded(stream.EmbeddedConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

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

// TestCrashEndsOpenTransactions kills the broker twice, each time inside a transaction of one producer. What was open
// stays out for good, and what the producer commits later is read by everybody: neither may depend on the size of a
// fetch or on how often the broker has started since.
func TestCrashEndsOpenTransactions(t *testing.T) {
	ctx := testContext(t)
	dir := t.TempDir()
	e := startOn(t, dir)
	if err := stream.EnsureTopics(ctx, e.Config(), []schemas.Topic{{Name: "out"}}, 1, -1); err != nil {
		t.Fatal(err)
	}
	var want []string
	for round := range 3 {
		open := transaction(t, ctx, e.Config(), fmt.Sprintf("open %d", round))
		dir = image(t, dir)
		open.Close()
		e.Close()
		e = startOn(t, dir)
		if got := values(t, e.Config(), "out"); !cmp.Equal(got, want) {
			t.Fatalf("round %d, after the crash: %q, want %q", round, got, want)
		}
		want = append(want, fmt.Sprintf("committed %d", round))
		done := transaction(t, ctx, e.Config(), want[round])
		if err := done.EndTransaction(ctx, kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
		if got := values(t, e.Config(), "out"); !cmp.Equal(got, want) {
			t.Fatalf("round %d, after a commit: %q, want %q", round, got, want)
		}
	}
}
