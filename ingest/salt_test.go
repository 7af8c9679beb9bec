package ingest

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"ctrloop/internal/config"
	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

// Two instances with different salts notice each other, two with the same do not.
func TestTwoSaltsAreNoticed(t *testing.T) {
	b := streamtest.Start(t, 2)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	run := func(name, salt string) *Service {
		cfg := testConfig()
		cfg.Clock, cfg.Instance, cfg.UserSalt = ClockWall, name, config.Secret(salt)
		s, _ := newService(t, b, cfg)
		done := make(chan error, 1)
		within, stop := context.WithCancel(ctx)
		go func() { done <- s.Run(within) }()
		t.Cleanup(func() {
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		return s
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for !ok() {
			if ctx.Err() != nil {
				t.Fatal(what)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	first := run("a", "one")
	streamtest.Produce(t, b.Config, &stream.Record{Topic: schemas.TopicRawImpressions, Value: rawValue(t, testImpression(1_700_000_000_000, 1))})
	committed := func() (n int) {
		at, err := stream.CommittedOffsets(ctx, b.Config, Group, schemas.TopicRawImpressions)
		if err != nil {
			t.Fatal(err)
		}
		return len(at)
	}
	until("nothing was committed", func() bool { return committed() > 0 })
	same := run("b", "one")
	until("b has no partitions", func() bool { return testutil.ToFloat64(same.metrics.owned) > 0 })
	if n := testutil.ToFloat64(same.metrics.foreignSalt) + testutil.ToFloat64(first.metrics.foreignSalt); n != 0 {
		t.Errorf("%v partitions of another salt, all have one", n)
	}
	other := run("c", "two")
	until("c does not notice that the others have another salt", func() bool { return testutil.ToFloat64(other.metrics.foreignSalt) > 0 })
}
