package stream_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

// pollUntil polls all members in turn until ok.
func pollUntil(t *testing.T, ok func() bool, polls ...func(context.Context, time.Duration) (stream.Batch, error)) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("the group does not come to rest")
		}
		for _, poll := range polls {
			if _, err := poll(t.Context(), 50*time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// joinerLike is a co-partitioned member and what it has.
type joinerLike struct {
	*stream.Tx
	has map[string][]int32
}

func newJoinerLike(t *testing.T, c stream.Config, id string) *joinerLike {
	t.Helper()
	j := &joinerLike{}
	tx, err := stream.NewTx(c, stream.TxConfig{
		Group: "g", TransactionalID: id, InstanceID: id, Topics: []string{schemas.TopicImpressions, schemas.TopicClicks},
		CoPartitioned: true, Held: true,
		OnAssigned: func(_ context.Context, ps map[string][]int32) { j.has = ps },
		OnLost:     func(context.Context, map[string][]int32) { j.has = nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	j.Tx = tx
	return j
}

// Whatever the number of partitions, both topics meet in one member, shares are even, and only what has to moves when a member
// comes or goes.
func TestTxCoPartitionedMovesLittle(t *testing.T) {
	for _, partitions := range []int{7, 8} {
		t.Run(fmt.Sprint(partitions), func(t *testing.T) {
			b := streamtest.Start(t, int32(partitions))
			var js []*joinerLike
			rest := func() map[int32]*joinerLike {
				t.Helper()
				owners := map[int32]*joinerLike{}
				var polls []func(context.Context, time.Duration) (stream.Batch, error)
				for _, j := range js {
					polls = append(polls, j.Poll)
				}
				pollUntil(t, func() bool {
					clear(owners)
					n := 0
					for _, j := range js {
						imps := j.has[schemas.TopicImpressions]
						if slices.Sort(imps); len(imps) > partitions/len(js)+min(1, partitions%len(js)) {
							return false
						}
						for _, p := range imps {
							owners[p] = j
							n++
						}
					}
					return n == partitions && len(owners) == partitions
				}, polls...)
				for _, j := range js {
					clicks := j.has[schemas.TopicClicks]
					slices.Sort(clicks)
					if !slices.Equal(clicks, j.has[schemas.TopicImpressions]) {
						t.Fatalf("a member has impressions %v and clicks %v", j.has[schemas.TopicImpressions], clicks)
					}
				}
				return owners
			}
			moved := func(before, after map[int32]*joinerLike) (n int) {
				for p, j := range before {
					if after[p] != j {
						n++
					}
				}
				return n
			}
			js = append(js, newJoinerLike(t, b.Config, "z")) // names against the order of arrival: range would move everything
			was := rest()
			for k, name := range []string{"y", "x", "w"} {
				js = append(js, newJoinerLike(t, b.Config, name))
				now := rest()
				if n, want := moved(was, now), partitions/(k+2); n > want {
					t.Errorf("%d partitions moved when member %d came, want %d at most", n, k+2, want)
				}
				was = now
			}
			left := js[1]
			js = slices.Delete(js, 1, 2)
			if err := left.Leave(t.Context()); err != nil {
				t.Fatal(err)
			}
			now := rest()
			maps.DeleteFunc(was, func(_ int32, j *joinerLike) bool { return j == left })
			if n := moved(was, now); n > 0 {
				t.Errorf("%d partitions of members that stayed have moved", n)
			}
			for _, j := range js {
				j.Close()
			}
		})
	}
}

// A static member that leaves in good order is not waited for; one that is only closed keeps its place.
func TestStaticMemberLeaves(t *testing.T) {
	streamtest.NeedFake(t)
	for name, test := range map[string]struct {
		leave  bool
		within time.Duration // until the other one has everything
	}{
		"it leaves":                  {leave: true, within: 5 * time.Second},
		"it is closed for a restart": {leave: false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, stop := streamtest.StartVirtual(t, 4)
				defer stop()
				one, two := newJoinerLike(t, b.Config, "one"), newJoinerLike(t, b.Config, "two")
				defer one.Close()
				pollUntil(t, func() bool {
					return len(one.has[schemas.TopicClicks]) == 2 && len(two.has[schemas.TopicClicks]) == 2
				}, one.Poll, two.Poll)
				if test.leave {
					if err := two.Leave(t.Context()); err != nil {
						t.Fatal(err)
					}
				} else {
					two.Close()
				}
				began := time.Now()
				for len(one.has[schemas.TopicClicks]) < 4 && time.Since(began) < time.Minute {
					if _, err := one.Poll(t.Context(), 100*time.Millisecond); err != nil {
						t.Fatal(err)
					}
				}
				took := time.Since(began)
				if test.leave && took > test.within || !test.leave && took < 20*time.Second {
					t.Errorf("the other one had everything after %s", took)
				}
			})
		})
	}
}

// Nobody takes over from the only member, so it keeps its place: its next life need not wait for the group to form.
func TestOnlyMemberStays(t *testing.T) {
	b := streamtest.Start(t, 2)
	one := newJoinerLike(t, b.Config, "one")
	pollUntil(t, func() bool { return len(one.has[schemas.TopicClicks]) == 2 }, one.Poll)
	if err := one.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if ids := streamtest.Members(t, b.Config, "g"); !slices.Equal(ids, []string{"one"}) {
		t.Errorf("members are %v", ids)
	}
}

// The broker checks who commits, not for what.
func TestConsumerRefusesToCommitAStrangersPartition(t *testing.T) {
	b := streamtest.StartTopics(t, 2, schemas.Topic{Name: "in"})
	for p := range int32(2) {
		streamtest.Produce(t, b.Config, &stream.Record{Topic: "in", Partition: p, Value: []byte("x")})
	}
	own := [2]map[int32]bool{{}, {}}
	var ks [2]*stream.Consumer
	for i := range ks {
		k, err := stream.NewConsumer(b.Config, stream.ConsumerConfig{
			Group: "g", Topics: []string{"in"},
			OnAssigned: func(_ context.Context, ps map[string][]int32) {
				for _, p := range ps["in"] {
					own[i][p] = true
				}
			},
			OnLost: func(_ context.Context, ps map[string][]int32) {
				for _, p := range ps["in"] {
					delete(own[i], p)
				}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		ks[i] = k
	}
	pollUntil(t, func() bool { return len(own[0]) == 1 && len(own[1]) == 1 }, ks[0].Poll, ks[1].Poll)
	for p := range int32(2) {
		tp := stream.TopicPartition{Topic: "in", Partition: p}
		err := ks[0].Commit(t.Context(), map[stream.TopicPartition]stream.Committed{tp: {Offset: 1, LeaderEpoch: -1, Metadata: "mine"}})
		if own[0][p] && err != nil || !own[0][p] && !errors.Is(err, stream.ErrRebalanced) {
			t.Errorf("commit of partition %d, which is mine: %v: %v", p, own[0][p], err)
		}
	}
	at, err := stream.CommittedOffsets(t.Context(), b.Config, "g")
	if err != nil || len(at) != 1 {
		t.Errorf("committed are %v, %v, want the member's own partition alone", at, err)
	}
}

// Consumers need no co-partitioning: what stays is not even told to have gone.
func TestConsumerIsCooperative(t *testing.T) {
	b := streamtest.StartTopics(t, 4, schemas.Topic{Name: "in"})
	own, lost := map[int32]bool{}, 0
	first, err := stream.NewConsumer(b.Config, stream.ConsumerConfig{
		Group: "g", Topics: []string{"in"},
		OnAssigned: func(_ context.Context, ps map[string][]int32) {
			for _, p := range ps["in"] {
				own[p] = true
			}
		},
		OnLost: func(_ context.Context, ps map[string][]int32) {
			for _, p := range ps["in"] {
				lost++
				delete(own, p)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	pollUntil(t, func() bool { return len(own) == 4 }, first.Poll)
	second, err := stream.NewConsumer(b.Config, stream.ConsumerConfig{Group: "g", Topics: []string{"in"}})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	pollUntil(t, func() bool { return len(own) == 2 }, first.Poll, second.Poll)
	if lost != 2 {
		t.Errorf("%d partitions were taken, want the 2 that moved", lost)
	}
}

// What a consumer has read of the partitions that stay it does not read again because others move: it holds rows that it has not
// committed yet.
func TestConsumerReadsOnOverARebalance(t *testing.T) {
	b := streamtest.StartTopics(t, 4, schemas.Topic{Name: "in"})
	const each = 5
	for p := range int32(4) {
		for range each {
			streamtest.Produce(t, b.Config, &stream.Record{Topic: "in", Partition: p, Value: []byte("x")})
		}
	}
	own, read := map[int32]bool{}, map[int32][]int64{}
	first, err := stream.NewConsumer(b.Config, stream.ConsumerConfig{
		Group: "g", Topics: []string{"in"},
		OnAssigned: func(_ context.Context, ps map[string][]int32) {
			for _, p := range ps["in"] {
				own[p] = true
			}
		},
		OnLost: func(_ context.Context, ps map[string][]int32) {
			for _, p := range ps["in"] {
				delete(own, p)
				delete(read, p) // what comes back is read from its last commit
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	poll := func(ctx context.Context, wait time.Duration) (stream.Batch, error) {
		batch, err := first.Poll(ctx, wait)
		for _, p := range batch.Partitions {
			for _, r := range p.Records {
				read[p.Partition] = append(read[p.Partition], r.Offset)
			}
		}
		return batch, err
	}
	pollUntil(t, func() bool { return len(read[0])+len(read[1])+len(read[2])+len(read[3]) == 4*each }, poll)
	second, err := stream.NewConsumer(b.Config, stream.ConsumerConfig{Group: "g", Topics: []string{"in"}})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	pollUntil(t, func() bool { return len(own) == 2 }, poll, second.Poll)
	for p := range own {
		streamtest.Produce(t, b.Config, &stream.Record{Topic: "in", Partition: p, Value: []byte("last")})
	}
	pollUntil(t, func() bool {
		for p := range own {
			if n := len(read[p]); n == 0 || read[p][n-1] != each {
				return false
			}
		}
		return true
	}, poll, second.Poll)
	for p := range own {
		if want := []int64{0, 1, 2, 3, 4, 5}; !slices.Equal(read[p], want) {
			t.Errorf("read of partition %d, which stayed: %v, want %v", p, read[p], want)
		}
	}
}

// The wait of a poll and the end of its context are two things.
func TestPollEndsWithItsContext(t *testing.T) {
	b, _ := startCopy(t, 1, 0), testContext(t)
	tx, err := stream.NewTx(b.Config, stream.TxConfig{Group: "g", TransactionalID: "t", Topics: []string{"in"}})
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Close()
	if batch, err := tx.Poll(t.Context(), time.Millisecond); err != nil || len(batch.Partitions) > 0 {
		t.Errorf("when the wait is over: %v, %v", batch, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := tx.Poll(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("at the deadline of the context: %v", err)
	}
	tx.Wake()
	if _, err := tx.Poll(t.Context(), time.Hour); err != nil {
		t.Errorf("after Wake: %v", err)
	}
}
