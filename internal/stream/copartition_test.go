package stream

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Members come, go, forget and contradict each other: shares are even, complete, and as much stays as can.
func TestShare(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		n, members := int32(r.IntN(20)), make([]claim, 1+r.IntN(6))
		for i := range members {
			members[i].generation = int32(r.IntN(4))
			for p := range n + 2 { // two that are not there any more
				if r.IntN(3) == 0 {
					members[i].partitions = append(members[i].partitions, p)
				}
			}
		}
		out := share(n, members)
		var all []int32
		kept, could := 0, 0
		quota := int(n) / len(members)
		for i, ps := range out {
			all = append(all, ps...)
			if len(ps) < quota || len(ps) > quota+1 || !slices.IsSorted(ps) {
				t.Fatalf("%d partitions of %d for one of %d members", len(ps), n, len(members))
			}
			for _, p := range ps {
				if latest(members, p) == i {
					kept++
				}
			}
		}
		slices.Sort(all)
		for p := range n {
			if int(p) >= len(all) || all[p] != p {
				t.Fatalf("%v are not all of %d", all, n)
			}
		}
		had := make([]int, len(members))
		for p := range n {
			if i := latest(members, p); i >= 0 {
				had[i]++
			}
		}
		slices.Sort(had)
		slices.Reverse(had)
		for k, h := range had {
			room := quota
			if k < int(n)%len(members) {
				room++
			}
			could += min(h, room)
		}
		if kept != could {
			t.Fatalf("%d partitions stay where they were, %d could: %v of %v", kept, could, out, members)
		}
	}
}

// latest is who claims a partition in the latest generation, the first of equals; -1: nobody.
func latest(members []claim, p int32) int {
	out := -1
	for i, m := range members {
		if slices.Contains(m.partitions, p) && (out < 0 || m.generation > members[out].generation) {
			out = i
		}
	}
	return out
}

// What a member has had longest stays with it, though the client sorts what it has read of the members when it logs a balance.
func TestWhatCameLastGoesFirst(t *testing.T) {
	topics := []string{"in"}
	long := &copartitioned{claims: map[string][]int32{"in": {3, 4, 0, 1, 2}}, generation: 4}
	fresh := &copartitioned{}
	b, err := kgo.NewConsumerBalancer(fresh, []kmsg.JoinGroupResponseMember{
		{MemberID: "long", ProtocolMetadata: long.JoinGroupMetadata(topics, nil, 0)},
		{MemberID: "fresh", ProtocolMetadata: fresh.JoinGroupMetadata(topics, nil, 0)},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.EachMember(func(_ *kmsg.JoinGroupResponseMember, meta *kmsg.ConsumerMemberMetadata) {
		for _, own := range meta.OwnedPartitions {
			slices.Sort(own.Partitions)
		}
	})
	plan := fresh.Balance(b, map[string]int32{"in": 5}).(*kgo.BalancePlan).AsMemberIDMap()
	if got := plan["long"]["in"]; !slices.Equal(got, []int32{0, 3, 4}) {
		t.Errorf("it keeps %v, want 0, 3 and 4", got)
	}
}

// An owner that has not heard that a partition came must not hear it once it has gone.
func TestCameAndWentIsNotTold(t *testing.T) {
	var told [][]int32
	m := newMember(Config{}, "g", "", 0, func(_ context.Context, ps map[string][]int32) { told = append(told, ps["in"]) }, nil)
	m.cooperative = true
	m.came(nil, map[string][]int32{"in": {1, 2, 3}})
	m.went(map[string][]int32{"in": {2}})
	m.came(nil, map[string][]int32{"in": {4}})
	m.went(map[string][]int32{"in": {4}})
	m.deliver(t.Context())
	if len(told) != 1 || !slices.Equal(told[0], []int32{1, 3}) {
		t.Errorf("told of %v, want [[1 3]]", told)
	}
}
