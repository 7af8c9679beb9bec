package stream_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

func key(i int) []byte { return binary.BigEndian.AppendUint64(nil, uint64(i)) }

func inputs(topic string, from, to int) []*stream.Record {
	var rs []*stream.Record
	for i := from; i < to; i++ {
		rs = append(rs, &stream.Record{Topic: topic, Key: key(i), Value: key(i), Timestamp: time.UnixMilli(int64(1000 + i))})
	}
	return rs
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestEnsureTopicsIsIdempotentAndRefusesAnotherCount(t *testing.T) {
	b, ctx := streamtest.StartTopics(t, 1), testContext(t)
	topics := schemas.Topics()
	for range 2 {
		if err := stream.EnsureTopics(ctx, b.Config, topics, 3, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	err := stream.EnsureTopics(ctx, b.Config, topics, 4, time.Hour)
	if !errors.Is(err, stream.ErrPartitionCount) {
		t.Fatalf("want ErrPartitionCount, got %v", err)
	}
	for _, topic := range []string{
		schemas.TopicRawImpressions, schemas.TopicRawClicks, schemas.TopicDeadLetters, schemas.TopicLate, schemas.TopicAudit, schemas.TopicPairs,
	} {
		if strings.Contains(err.Error(), topic) {
			t.Errorf("%s may have any number of partitions: %v", topic, err)
		}
	}
	end, err := stream.EndOffsets(ctx, b.Config, schemas.TopicImpressions, schemas.TopicControl)
	if err != nil || len(end) != 3+1 {
		t.Fatalf("want 3 partitions of imp.v1 and 1 of control.v1, got %v, %v", end, err)
	}
}

func TestDeleteTopicsAndMakeThemAnew(t *testing.T) {
	b, ctx := streamtest.StartTopics(t, 2, schemas.Topic{Name: "a"}), testContext(t)
	streamtest.Produce(t, b.Config, &stream.Record{Topic: "a", Value: []byte("x")})
	if err := stream.DeleteTopics(ctx, b.Config, "a", "never-there"); err != nil {
		t.Fatal(err)
	}
	if err := stream.EnsureTopics(ctx, b.Config, []schemas.Topic{{Name: "a"}}, 3, -1); err != nil {
		t.Fatal(err)
	}
	if n := len(streamtest.Records(t, b.Config, "a")); n != 0 {
		t.Errorf("%d partitions have records", n)
	}
}

func TestCheckBroker(t *testing.T) {
	streamtest.NeedFake(t)
	b, ctx := streamtest.StartTopics(t, 1), testContext(t)
	if err := stream.CheckBroker(ctx, b.Config); err != nil {
		t.Fatal(err)
	}
	b.Cluster.ControlKey(int16(kmsg.ApiVersions), func(r kmsg.Request) (kmsg.Response, error, bool) {
		b.Cluster.KeepControl()
		resp := r.ResponseKind().(*kmsg.ApiVersionsResponse)
		for _, k := range []kmsg.Key{kmsg.ApiVersions, kmsg.Metadata, kmsg.Produce, kmsg.Fetch} {
			resp.ApiKeys = append(resp.ApiKeys, kmsg.ApiVersionsResponseApiKey{ApiKey: int16(k), MaxVersion: 3})
		}
		return resp, nil, true
	})
	if err := stream.CheckBroker(ctx, b.Config); !errors.Is(err, stream.ErrBroker) {
		t.Fatalf("a broker without transaction.version must be refused, got %v", err)
	}
}

func TestPartitionRule(t *testing.T) {
	placed := schemas.Topic{Name: schemas.TopicEvidence, Compacted: true, Placed: true}
	b := streamtest.StartTopics(t, 7, schemas.Topic{Name: "a"}, schemas.Topic{Name: "b"}, placed)
	var rs []*stream.Record
	for i := range 200 {
		rs = append(rs, &stream.Record{Topic: "a", Key: key(i)}, &stream.Record{Topic: "b", Key: key(i)})
	}
	rs = append(rs, &stream.Record{Topic: "b", Partition: 5, Value: []byte("pinned")})
	streamtest.Produce(t, b.Config, rs...)
	for p, got := range streamtest.Records(t, b.Config, "b") {
		for _, r := range got {
			want := int32(5)
			if r.Key != nil {
				want = stream.PartitionOf(r.Key, 7)
			}
			if p != want {
				t.Errorf("key %x is in %d, want %d", r.Key, p, want)
			}
		}
	}
	for i := range 50 {
		streamtest.Produce(t, b.Config, &stream.Record{Topic: schemas.TopicEvidence, Partition: int32(i % 7), Key: key(i)})
	}
	for p, got := range streamtest.Records(t, b.Config, schemas.TopicEvidence) {
		if want := (50 - int(p) + 6) / 7; len(got) != want {
			t.Errorf("%d records in partition %d of a topic that is placed, want %d", len(got), p, want)
		}
	}
	if diff := cmp.Diff(keys(streamtest.Records(t, b.Config, "a")), keys(streamtest.Records(t, b.Config, "b"))); diff != "" {
		t.Errorf("topics are not co-partitioned: %s", diff)
	}
}

func keys(byPartition map[int32][]*stream.Record) map[int32][]string {
	out := map[int32][]string{}
	for p, rs := range byPartition {
		for _, r := range rs {
			if r.Key != nil {
				out[p] = append(out[p], fmt.Sprintf("%x", r.Key))
			}
		}
	}
	return out
}

// copier moves "in" to "out" until it has seen n records committed, one for one.
type copier struct {
	conf stream.Config
	id   string
	max  int
	meta string
	// before the commit: return false to abandon the transaction, as a crash would
	beforeCommit func() bool
}

var errCrash = errors.New("crash")

func (c copier) run(ctx context.Context, n int) (commits, aborts int, err error) {
	tx, err := stream.NewTx(
		c.conf,
		stream.TxConfig{Group: "g", TransactionalID: c.id, InstanceID: c.id, Topics: []string{"in"}, MaxPoll: c.max},
	)
	if err != nil {
		return 0, 0, err
	}
	defer tx.Close()
	for done := 0; done < n; {
		batch, err := tx.Poll(ctx, time.Minute)
		if err != nil {
			return commits, aborts, err
		}
		if err := tx.Begin(); err != nil {
			return commits, aborts, err
		}
		for _, p := range batch.Partitions {
			for _, r := range p.Records {
				tx.Produce(&stream.Record{Topic: "out", Key: r.Key, Value: r.Value, Timestamp: r.Timestamp})
			}
		}
		if c.beforeCommit != nil && !c.beforeCommit() {
			return commits, aborts, errCrash
		}
		ok, err := tx.Commit(ctx, func(topic string, p int32) (string, bool) { return c.meta, true })
		if err != nil {
			return commits, aborts, err
		}
		if !ok {
			aborts++
			continue
		}
		commits++
		done += batch.Len()
	}
	return commits, aborts, nil
}

func checkCopied(t *testing.T, c stream.Config, n int) {
	t.Helper()
	seen := map[string]int{}
	for _, rs := range streamtest.Records(t, c, "out") {
		for _, r := range rs {
			seen[string(r.Key)]++
		}
	}
	for i := range n {
		if seen[string(key(i))] != 1 {
			t.Fatalf("record %d is there %d times", i, seen[string(key(i))])
		}
	}
	if len(seen) != n {
		t.Fatalf("%d records, want %d", len(seen), n)
	}
}

func startCopy(t *testing.T, partitions int32, n int) *streamtest.Broker {
	b := streamtest.StartTopics(t, partitions, schemas.Topic{Name: "in"}, schemas.Topic{Name: "out"})
	streamtest.Produce(t, b.Config, inputs("in", 0, n)...)
	return b
}

func TestTxCopiesOnceAndStoresMetadata(t *testing.T) {
	const n = 5000
	b, ctx := startCopy(t, 3, n), testContext(t)
	if _, aborts, err := (copier{conf: b.Config, id: "t", max: 700, meta: "mark"}).run(ctx, n); err != nil || aborts != 0 {
		t.Fatal(aborts, err)
	}
	checkCopied(t, b.Config, n)
	committed, err := stream.CommittedOffsets(ctx, b.Config, "g")
	if err != nil {
		t.Fatal(err)
	}
	end, err := stream.EndOffsets(ctx, b.Config, "in")
	if err != nil {
		t.Fatal(err)
	}
	for tp, at := range end {
		if c := committed[tp]; c.Offset != at || c.Metadata != "mark" {
			t.Errorf("%v: committed %+v, want offset %d with metadata", tp, c, at)
		}
	}
}

func TestTxUnderFaultsAndCrashes(t *testing.T) {
	const n = 6000
	for _, test := range []struct {
		name   string
		faults []kfake.Fault
		crash  int // abandon this many transactions before their commit
	}{
		{name: "crash between produce and commit", crash: 3},
		{name: "produce refused", faults: []kfake.Fault{{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotLeaderForPartition, Count: 4}}},
		{name: "produce applied but answered timed out",
			faults: []kfake.Fault{{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut, Count: 3}}},
		{name: "offset commit during a rebalance",
			faults: []kfake.Fault{{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.RebalanceInProgress, Count: 2}}},
		{name: "end: unknown server error", faults: []kfake.Fault{{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.UnknownServerError, Count: 2}}},
		{name: "end: coordinator away", faults: []kfake.Fault{{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.CoordinatorNotAvailable, Count: 3}}},
		{name: "end: concurrent transactions",
			faults: []kfake.Fault{{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.ConcurrentTransactions, Count: 3}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if len(test.faults) > 0 {
				streamtest.NeedFake(t)
			}
			t.Parallel()
			b, ctx := startCopy(t, 3, n), testContext(t)
			if len(test.faults) > 0 {
				h := b.Cluster.Fault(test.faults...)
				defer func() {
					if h.Hits() == 0 {
						t.Error("the fault never happened")
					}
				}()
			}
			crashes := test.crash
			c := copier{conf: b.Config, id: "t", max: 500, beforeCommit: func() bool {
				crashes--
				return crashes < 0
			}}
			for {
				// The number committed before a crash or a fatal error is unknown to the copier, as it
				// would be to a new process: it is done when nothing is left.
				left := remaining(t, ctx, b.Config, n)
				if left == 0 {
					break
				}
				if _, _, err := c.run(ctx, left); err != nil && ctx.Err() != nil {
					t.Fatal(err)
				}
			}
			checkCopied(t, b.Config, n)
		})
	}
}

func remaining(t *testing.T, ctx context.Context, c stream.Config, n int) int {
	t.Helper()
	committed, err := stream.CommittedOffsets(ctx, c, "g")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range committed {
		n -= int(p.Offset)
	}
	return n
}

func TestTxKeepsPolledRecordsForLater(t *testing.T) {
	const n = 100
	b, ctx := startCopy(t, 1, n), testContext(t)
	conf := stream.TxConfig{Group: "g", TransactionalID: "t", InstanceID: "t", Topics: []string{"in"}, MaxPoll: 40}
	tx, err := stream.NewTx(b.Config, conf)
	if err != nil {
		t.Fatal(err)
	}
	batch, err := tx.Poll(ctx, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	tp := stream.TopicPartition{Topic: "in"}
	send := func(rs []*stream.Record) {
		if err := tx.Begin(); err != nil {
			t.Fatal(err)
		}
		for _, r := range rs {
			tx.Produce(&stream.Record{Topic: "out", Key: r.Key})
		}
	}
	polled := batch.Partitions[0].Records
	send(polled[:10])
	if ok, err := tx.CommitUpTo(ctx, map[stream.TopicPartition]int64{tp: polled[10].Offset}, nil); !ok || err != nil {
		t.Fatal(ok, err)
	}
	// An abort goes back to record 10, not to where polling was.
	send(polled[10:20])
	if err := tx.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	if batch, err = tx.Poll(ctx, time.Minute); err != nil {
		t.Fatal(err)
	}
	if got := batch.Partitions[0].Records[0].Offset; got != 10 {
		t.Fatalf("after an abort the first record is %d, want 10", got)
	}
	polled = batch.Partitions[0].Records
	send(polled[:5])
	if ok, err := tx.CommitUpTo(ctx, map[stream.TopicPartition]int64{tp: 15}, nil); !ok || err != nil {
		t.Fatal(ok, err)
	}
	// Without a new poll, the rest of what was kept moves the commit on.
	send(polled[5:7])
	if ok, err := tx.CommitUpTo(ctx, map[stream.TopicPartition]int64{tp: 17}, nil); !ok || err != nil {
		t.Fatal(ok, err)
	}
	tx.Close()
	if _, _, err := (copier{conf: b.Config, id: "t", max: 40}).run(ctx, n-17); err != nil {
		t.Fatal(err)
	}
	checkCopied(t, b.Config, n)
}

// A member that is fenced by a second one with the same ids must not commit.
func TestTxZombieIsFenced(t *testing.T) {
	const n = 1000
	b, ctx := startCopy(t, 2, n), testContext(t)
	zombie := copier{conf: b.Config, id: "t", max: 300, beforeCommit: func() bool {
		if _, _, err := (copier{conf: b.Config, id: "t", max: 300}).run(ctx, n); err != nil {
			t.Error(err)
		}
		return true
	}}
	commits, _, err := zombie.run(ctx, n)
	if err == nil || commits != 0 {
		t.Fatalf("the zombie committed %d transactions, error %v", commits, err)
	}
	checkCopied(t, b.Config, n)
}

// Members come and go while records are copied, now and then in the middle of a transaction: no revoke
// may lose or double anything, with a partition count that does not divide.
func TestTxRebalances(t *testing.T) {
	const n = 8_000
	b, ctx := startCopy(t, 7, n), testContext(t)
	done := make(chan int, 3)
	for i := range 3 {
		go func() {
			lives := 0
			// Look only after a life that left nothing open: the look waits for open transactions.
			for busy := true; busy || remainingQuiet(ctx, b.Config, n) > 0; lives++ {
				busy = runLife(ctx, b.Config, fmt.Sprint("t", i), 5+(7*i+3*lives)%11)
			}
			done <- lives
		}()
	}
	lives := 0
	for range 3 {
		lives += <-done
	}
	if ctx.Err() != nil {
		t.Fatal(ctx.Err())
	}
	if lives < 10 {
		t.Fatalf("only %d members ever joined: nothing was tested", lives)
	}
	checkCopied(t, b.Config, n)
}

func remainingQuiet(ctx context.Context, c stream.Config, n int) int {
	committed, err := stream.CommittedOffsets(ctx, c, "g")
	if err != nil {
		return n
	}
	for _, p := range committed {
		n -= int(p.Offset)
	}
	if ctx.Err() != nil {
		return 0
	}
	return n
}

// runLife copies some batches as a dynamic member and leaves the group in the middle of a transaction;
// it returns false when it found nothing to do.
func runLife(ctx context.Context, conf stream.Config, id string, batches int) bool {
	tx, err := stream.NewTx(conf, stream.TxConfig{Group: "g", TransactionalID: id, Topics: []string{"in"}, MaxPoll: 50})
	if err != nil {
		return ctx.Err() == nil
	}
	defer tx.Close()
	for ; batches > 0; batches-- {
		batch, err := tx.Poll(ctx, 2*time.Second)
		if err == nil && batch.Len() == 0 {
			return false
		}
		if err != nil || tx.Begin() != nil {
			return ctx.Err() == nil
		}
		for _, p := range batch.Partitions {
			for _, r := range p.Records {
				tx.Produce(&stream.Record{Topic: "out", Key: r.Key})
			}
		}
		if batches == 1 {
			return true
		}
		if _, err := tx.Commit(ctx, nil); err != nil {
			return ctx.Err() == nil
		}
	}
	return true
}

func TestReadRangeEndsAtAbortedBatches(t *testing.T) {
	b, ctx := startCopy(t, 1, 20), testContext(t)
	tx, err := stream.NewTx(b.Config, stream.TxConfig{Group: "g", TransactionalID: "t", Topics: []string{"in"}})
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Close()
	write := func(from, to int, commit bool) {
		if _, err := tx.Poll(ctx, time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := tx.Begin(); err != nil {
			t.Fatal(err)
		}
		for i := from; i < to; i++ {
			tx.Produce(&stream.Record{Topic: "out", Key: key(i)})
		}
		if commit {
			if ok, err := tx.Commit(ctx, nil); !ok || err != nil {
				t.Fatal(ok, err)
			}
		} else {
			// The records must be on the log, to be aborted there.
			if err := tx.FlushForTest(ctx); err != nil {
				t.Fatal(err)
			}
			if err := tx.Abort(ctx); err != nil {
				t.Fatal(err)
			}
		}
		streamtest.Produce(t, b.Config, &stream.Record{Topic: "in", Key: key(99)}) // so that the next poll returns
	}
	write(0, 3, true)
	write(3, 6, false)
	write(6, 9, true)
	write(9, 12, false)
	end, err := stream.EndOffsets(ctx, b.Config, "out")
	if err != nil {
		t.Fatal(err)
	}
	last := end[stream.TopicPartition{Topic: "out"}]
	if last != 16 {
		t.Fatalf("12 records and 4 markers, but the log ends at %d", last)
	}
	committed := map[int64]bool{0: true, 1: true, 2: true, 8: true, 9: true, 10: true}
	for from := range last + 1 {
		for to := from; to <= last; to++ {
			var got, want []int64
			if err := stream.ReadRange(ctx, b.Config, "out", 0, from, to, func(r *stream.Record) error {
				got = append(got, r.Offset)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			for o := from; o < to; o++ {
				if committed[o] {
					want = append(want, o)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("[%d,%d): %s", from, to, diff)
			}
		}
	}
	if err := stream.ReadRange(ctx, b.Config, "out", 0, 0, last+1, nil); !errors.Is(err, stream.ErrDataLoss) {
		t.Fatalf("beyond the end: want ErrDataLoss, got %v", err)
	}
}

func TestConsumerCommitsPlaceAndMetadata(t *testing.T) {
	b, ctx := startCopy(t, 1, 50), testContext(t)
	tp := stream.TopicPartition{Topic: "in"}
	k, err := stream.NewConsumer(b.Config, stream.ConsumerConfig{Group: "g", InstanceID: "k", Topics: []string{"in"}, MaxPoll: 10})
	if err != nil {
		t.Fatal(err)
	}
	batch, err := k.Poll(ctx, time.Minute)
	if err != nil || batch.Len() != 10 {
		t.Fatal(batch.Len(), err)
	}
	for _, want := range []stream.Committed{{Offset: 0, LeaderEpoch: -1, Metadata: "pending=10"}, {Offset: 10, LeaderEpoch: -1}} {
		if err := k.Commit(ctx, map[stream.TopicPartition]stream.Committed{tp: want}); err != nil {
			t.Fatal(err)
		}
		got, err := stream.CommittedOffsets(ctx, b.Config, "g")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[stream.TopicPartition]stream.Committed{tp: want}, got); diff != "" {
			t.Fatal(diff)
		}
	}
	if batch, err = k.Poll(ctx, time.Minute); err != nil || batch.Partitions[0].Records[0].Offset != 10 {
		t.Fatal("the commit moved the reader", batch, err)
	}
	k.Rewind()
	if batch, err = k.Poll(ctx, time.Minute); err != nil || batch.Partitions[0].Records[0].Offset != 10 {
		t.Fatal("rewind must go to the commit", batch, err)
	}
	k.Close()
}

// A short poll must not cut off what the owner does when partitions come.
func TestCallbacksOutliveThePollsDeadline(t *testing.T) {
	b, ctx := startCopy(t, 1, 10), testContext(t)
	calls := 0
	var failed error
	tx, err := stream.NewTx(b.Config, stream.TxConfig{Group: "g", TransactionalID: "t", Topics: []string{"in"},
		OnAssigned: func(ctx context.Context, _ map[string][]int32) {
			calls++
			time.Sleep(20 * time.Millisecond) // longer than the poll
			_, failed = stream.EndOffsets(ctx, b.Config, "in")
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Close()
	for calls == 0 && ctx.Err() == nil {
		if _, err := tx.Poll(ctx, 5*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	if failed != nil || calls != 1 {
		t.Fatalf("%d calls, %v", calls, failed)
	}
}

func TestOffsetForTime(t *testing.T) {
	b, ctx := startCopy(t, 1, 50), testContext(t)
	for ms, want := range map[int64]int64{0: 0, 1000: 0, 1020: 20, 1049: 49, 1050: 50} {
		if got, err := stream.OffsetForTime(ctx, b.Config, "in", 0, ms); err != nil || got != want {
			t.Errorf("time %d: offset %d, want %d (%v)", ms, got, want, err)
		}
	}
}

func TestTailFollows(t *testing.T) {
	b, ctx := startCopy(t, 1, 5), testContext(t)
	ctx, cancel := context.WithCancel(ctx)
	n := 0
	err := stream.Tail(ctx, b.Config, "in", 0, 2, func(r *stream.Record) error {
		if n++; n == 3 {
			streamtest.Produce(t, b.Config, inputs("in", 5, 7)...)
		}
		if r.Offset == 6 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || n != 5 {
		t.Fatalf("%d records, %v", n, err)
	}
}

// A consumer whose next record was deleted must stop, never jump.
func TestDeletedRecordsAreFatal(t *testing.T) {
	b, ctx := startCopy(t, 1, 50), testContext(t)
	k, err := stream.NewConsumer(b.Config, stream.ConsumerConfig{Group: "g", InstanceID: "k", Topics: []string{"in"}, MaxPoll: 10})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Poll(ctx, time.Minute); err != nil {
		t.Fatal(err)
	}
	tp := stream.TopicPartition{Topic: "in"}
	if err := k.Commit(ctx, map[stream.TopicPartition]stream.Committed{tp: {Offset: 10, LeaderEpoch: -1}}); err != nil {
		t.Fatal(err)
	}
	k.Close()
	stream.DeleteRecordsForTest(t, b.Config, "in", 0, 30)
	if k, err = stream.NewConsumer(b.Config, stream.ConsumerConfig{Group: "g", InstanceID: "k", Topics: []string{"in"}}); err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	batch, err := k.Poll(ctx, time.Minute)
	if !errors.Is(err, stream.ErrDataLoss) {
		t.Fatalf("want ErrDataLoss, got %d records, %v", batch.Len(), err)
	}
}

// TestTxNudge: metadata is committed where no record has come, in the first life of a Tx and over an abort, and what
// was fetched again for it is not handed out again.
func TestTxNudge(t *testing.T) {
	const n = 7
	b, ctx := startCopy(t, 1, n), testContext(t)
	tp := stream.TopicPartition{Topic: "in"}
	note := func(text string) func(string, int32) (string, bool) {
		return func(string, int32) (string, bool) { return text, true }
	}
	var tx *stream.Tx
	begin := func() {
		t.Helper()
		var err error
		if tx, err = stream.NewTx(b.Config, stream.TxConfig{Group: "g", TransactionalID: "t", InstanceID: "t",
			Topics: []string{"in"}}); err != nil {
			t.Fatal(err)
		}
	}
	poll := func(want int) {
		t.Helper()
		batch, err := tx.Poll(ctx, time.Minute)
		if err != nil || len(batch.Partitions) != 1 || batch.Len() != want {
			t.Fatalf("%v, %v, want %d records of one partition", batch, err, want)
		}
		if err := tx.Begin(); err != nil {
			t.Fatal(err)
		}
	}
	commit := func(text string, at int64) {
		t.Helper()
		if ok, err := tx.Commit(ctx, note(text)); !ok || err != nil {
			t.Fatal(ok, err)
		}
		got, err := stream.CommittedOffsets(ctx, b.Config, "g", "in")
		if err != nil || got[tp].Metadata != text || got[tp].Offset != at {
			t.Fatalf("%+v, %v, want %q at %d", got, err, text, at)
		}
	}
	begin()
	poll(n)
	commit("with records", n)
	tx.Nudge(map[stream.TopicPartition]int64{tp: n})
	poll(0)
	commit("without", n)
	tx.Nudge(map[stream.TopicPartition]int64{tp: n})
	poll(0)
	if err := tx.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	streamtest.Produce(t, b.Config, inputs("in", n, n+2)...)
	poll(2)
	commit("two more", n+2)
	tx.Close()
	begin()
	defer func() { tx.Close() }()
	for again := true; again; { // the client may not have its place in the partition yet
		batch, err := tx.Poll(ctx, 100*time.Millisecond)
		if err != nil || batch.Len() != 0 || ctx.Err() != nil {
			t.Fatalf("%v, %v, want no records", batch, err)
		}
		if again = len(batch.Partitions) == 0; again {
			tx.Nudge(map[stream.TopicPartition]int64{tp: n + 2})
		}
	}
	if err := tx.Begin(); err != nil {
		t.Fatal(err)
	}
	commit("another life", n+2)
	tx.Nudge(map[stream.TopicPartition]int64{tp: n + 2})
	streamtest.Produce(t, b.Config, inputs("in", n+2, n+5)...)
	for got := 0; got < 3; {
		batch, err := tx.Poll(ctx, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if got += batch.Len(); got > 3 {
			t.Fatalf("%d records, want 3", got)
		}
	}
}
