package stream_test

import (
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
)

// One partition with records and, behind the last of them, the end of a transaction.
func TestLag(t *testing.T) {
	const n = 200
	b, ctx := startCopy(t, 1, n), testContext(t)
	if _, _, err := (copier{conf: b.Config, id: "t", max: n}).run(ctx, n); err != nil {
		t.Fatal(err)
	}
	streamtest.AwaitNoTransaction(t, b.Config, "out")
	ends, err := stream.EndOffsets(ctx, b.Config, "out")
	if err != nil {
		t.Fatal(err)
	}
	tp := stream.TopicPartition{Topic: "out"}
	records := streamtest.Records(t, b.Config, "out")[0]
	end, last := ends[tp], records[len(records)-1].Offset+1
	if len(records) != n || last >= end {
		t.Fatalf("%d records up to %d and the end at %d: want %d and an end of a transaction behind them", len(records), last, end, n)
	}
	k, err := stream.NewConsumer(b.Config, stream.ConsumerConfig{Group: "reader", InstanceID: "k", Topics: []string{"out"}, MaxPoll: 10})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Poll(ctx); err != nil { // joins the group
		t.Fatal(err)
	}
	defer k.Close()
	meter := stream.NewLagMeter(b.Config)
	check := func(group string, want int64) {
		t.Helper()
		got, err := meter.Lag(ctx, group, "out")
		if err != nil || got != want {
			t.Errorf("lag of %s: %d, want %d, %v", group, got, want, err)
		}
		if again, err := stream.Lag(ctx, b.Config, group, "out"); err != nil || again != got {
			t.Errorf("lag of %s: %d with a memory and %d without, %v", group, got, again, err)
		}
	}
	commit := func(offset int64) {
		t.Helper()
		if err := k.Commit(ctx, map[stream.TopicPartition]stream.Committed{tp: {Offset: offset, LeaderEpoch: -1}}); err != nil {
			t.Fatal(err)
		}
	}
	check("nobody", end)
	commit(150)
	check("reader", end-150)
	commit(last)
	check("reader", 0)
	commit(end)
	check("reader", 0)
	commit(150)
	check("reader", end-150)
	before := func(mark, want int64) {
		t.Helper()
		got, err := meter.Before(ctx, "reader", map[stream.TopicPartition]int64{tp: mark})
		if err != nil || got[tp] != want || len(got) != int(min(want, 1)) {
			t.Errorf("before %d: %v, want %d, %v", mark, got, want, err)
		}
	}
	before(100, 0)
	before(150, 0)
	before(170, 20)
	before(end, end-150)
	before(end+10, end-150) // not written yet: what is there is on its way
	commit(last)
	before(end, 0)
	before(end+10, 1)
	commit(150)
	stream.DeleteRecordsForTest(t, b.Config, "out", 0, 180)
	check("reader", end-180)
	check("nobody", end-180)

	commit(last)
	k.Close()
	var reads atomic.Int64
	if b.Cluster == nil { // the rest counts requests
		return
	}
	b.Cluster.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) {
		b.Cluster.KeepControl()
		reads.Add(1)
		return nil, nil, false
	})
	if got, err := meter.Lag(ctx, "reader", "out"); err != nil || got != 0 || reads.Load() != 0 {
		t.Errorf("lag %d with %d reads of what was empty before, %v", got, reads.Load(), err)
	}
	if got, err := stream.Lag(ctx, b.Config, "reader", "out"); err != nil || got != 0 || reads.Load() == 0 {
		t.Errorf("lag %d with %d reads, %v", got, reads.Load(), err)
	}
}
