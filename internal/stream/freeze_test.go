package stream_test

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"ctrloop/internal/broker"
	"ctrloop/internal/broker/brokertest"
	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

// thaw copies what belongs to a frozen moment into a folder for another broker.
func thaw(t *testing.T, f broker.Frozen) string {
	t.Helper()
	dir := t.TempDir()
	for name, size := range f.Sizes {
		to := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		in, err := os.Open(filepath.Join(f.Links, filepath.FromSlash(name)))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(io.LimitReader(in, size))
		if in.Close(); err != nil || int64(len(raw)) != size {
			t.Fatalf("%s: %d bytes of %d: %v", name, len(raw), size, err)
		}
		if err := os.WriteFile(to, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Moments of a broker in the middle of transactions: from each of them the copy goes on and is exact. Copies are made
// when the broker has written much more.
func TestFreezeIsOneMoment(t *testing.T) {
	const n = 1500
	ctx, dir := testContext(t), t.TempDir()
	e := brokertest.Start(t, dir)
	if err := stream.EnsureTopics(ctx, e.Config(), []schemas.Topic{{Name: "in"}, {Name: "out"}}, 2, -1); err != nil {
		t.Fatal(err)
	}
	streamtest.Produce(t, e.Config(), inputs("in", 0, n)...)
	now, done := make(chan bool, 100), make(chan error, 1)
	go func() {
		_, _, err := copier{conf: e.Config(), id: "t", max: 30, beforeCommit: func() bool { now <- true; return true }}.run(ctx, n)
		close(now)
		done <- err
	}()
	var frozen []broker.Frozen
	commits := 0
	for range now { // beside the commit
		if commits++; commits%10 != 5 {
			continue
		}
		f, err := e.Freeze(ctx)
		if err != nil {
			t.Fatal(err)
		}
		frozen = append(frozen, f)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	middle := 0
	for _, f := range frozen {
		copied := brokertest.Start(t, thaw(t, f))
		left := remaining(t, ctx, copied.Config(), n)
		if left > 0 && left < n {
			middle++
		}
		if _, _, err := (copier{conf: copied.Config(), id: "t", max: 300}).run(ctx, left); err != nil {
			t.Fatal(err)
		}
		checkCopied(t, copied.Config(), n)
		copied.Stop()
		if err := f.Release(); err != nil {
			t.Error(err)
		}
	}
	if middle == 0 {
		t.Error("no moment was in the middle: the test proves nothing")
	}
	checkCopied(t, e.Config(), n)
	if _, err := os.Stat(frozen[0].Links); err == nil {
		t.Error("a moment that was released is still there")
	}
}

// Links that a killed process has left are gone at the next start.
func TestFrozenRestIsRemoved(t *testing.T) {
	ctx, dir := testContext(t), t.TempDir()
	e := brokertest.Start(t, dir)
	f, err := e.Freeze(ctx)
	if err != nil {
		t.Fatal(err)
	}
	e.Stop()
	brokertest.Start(t, dir)
	if _, err := os.Stat(f.Links); err == nil {
		t.Error("links of an earlier process are still there")
	}
}
