package stream

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// copartitioned is the group balancer of consumers that join topics partition by partition: it gives partition p of every
// topic to one member and, when members come or go, moves only what the shares must change by. Its protocol is eager, so all
// that a member has to do at a rebalance is to stop, and to go on with what came back to it.
//
// What a member had is told by the member itself, not by the client, which has forgotten it when it joins again: an eager
// client gives everything back first.
type copartitioned struct {
	mu         sync.Mutex
	claims     map[string][]int32
	generation int32
}

// claim notes what was assigned, and in which generation: what was there before first, so that a member that has to give some
// away gives those that came last. An instance that was away for a restart so gets back what it had.
func (c *copartitioned) claim(partitions map[string][]int32, generation int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	claims := map[string][]int32{}
	for topic, ps := range partitions {
		var kept, fresh []int32
		for _, p := range c.claims[topic] {
			if slices.Contains(ps, p) {
				kept = append(kept, p)
			}
		}
		for _, p := range slices.Sorted(slices.Values(ps)) {
			if !slices.Contains(kept, p) {
				fresh = append(fresh, p)
			}
		}
		claims[topic] = append(kept, fresh...)
	}
	c.claims, c.generation = claims, generation
}

// ProtocolName implements kgo.GroupBalancer; all members of a group must speak it.
func (*copartitioned) ProtocolName() string { return "ctrloop-copartitioned" }

// IsCooperative implements kgo.GroupBalancer.
func (*copartitioned) IsCooperative() bool { return false }

// JoinGroupMetadata implements kgo.GroupBalancer.
func (c *copartitioned) JoinGroupMetadata(topics []string, _ map[string][]int32, _ int32) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := kmsg.NewConsumerMemberMetadata()
	m.Version, m.Topics, m.Generation = 3, topics, c.generation
	for _, topic := range slices.Sorted(maps.Keys(c.claims)) {
		own := kmsg.NewConsumerMemberMetadataOwnedPartition()
		own.Topic, own.Partitions = topic, c.claims[topic]
		m.OwnedPartitions = append(m.OwnedPartitions, own)
	}
	return m.AppendTo(nil)
}

// ParseSyncAssignment implements kgo.GroupBalancer.
func (*copartitioned) ParseSyncAssignment(assignment []byte) (map[string][]int32, error) {
	return kgo.ParseConsumerSyncAssignment(assignment)
}

// MemberBalancer implements kgo.GroupBalancer.
func (c *copartitioned) MemberBalancer(members []kmsg.JoinGroupResponseMember) (kgo.GroupMemberBalancer, map[string]struct{}, error) {
	b, err := kgo.NewConsumerBalancer(c, members)
	return b, b.MemberTopics(), err
}

// Balance implements kgo.ConsumerBalancerBalance: the leader of the group calls it.
func (*copartitioned) Balance(b *kgo.ConsumerBalancer, topics map[string]int32) kgo.IntoSyncAssignment {
	var members []*kmsg.JoinGroupResponseMember
	var claims []claim
	b.EachMember(func(m *kmsg.JoinGroupResponseMember, meta *kmsg.ConsumerMemberMetadata) {
		// The client has sorted what it read, for its log; the order in which a member had its partitions is in its own bytes.
		if own := new(kmsg.ConsumerMemberMetadata); own.ReadFrom(m.ProtocolMetadata) == nil {
			meta = own
		}
		c := claim{generation: meta.Generation}
		for _, own := range meta.OwnedPartitions {
			c.partitions = append(c.partitions, own.Partitions...)
		}
		members, claims = append(members, m), append(claims, c)
	})
	most := int32(0)
	for _, n := range topics {
		most = max(most, n)
	}
	plan := b.NewPlan()
	for i, ps := range share(most, claims) {
		for _, topic := range slices.Sorted(maps.Keys(topics)) {
			for _, p := range ps {
				if p < topics[topic] {
					plan.AddPartition(members[i], topic, p)
				}
			}
		}
	}
	return plan
}

// claim is what a member had, and in which generation it was given that.
type claim struct {
	partitions []int32
	generation int32
}

// share deals n partitions out to members, as evenly as can be, and leaves with each what it had as far as that allows, the
// first that it names before the last. Two that claim the same were given it in different generations: the later one has it.
func share(n int32, members []claim) [][]int32 {
	out := make([][]int32, len(members))
	if len(members) == 0 {
		return out
	}
	owner := make([]int, n)
	for p := range owner {
		owner[p] = -1
	}
	for i, m := range members {
		for _, p := range m.partitions {
			if p < n && (owner[p] < 0 || members[owner[p]].generation < m.generation) {
				owner[p] = i
			}
		}
	}
	had := make([]int, len(members))
	for _, i := range owner {
		if i >= 0 {
			had[i]++
		}
	}
	// Those that have most keep one more, where the shares cannot be equal.
	rank := make([]int, len(members))
	for i := range rank {
		rank[i] = i
	}
	slices.SortStableFunc(rank, func(a, b int) int { return cmp.Compare(had[b], had[a]) })
	room := make([]int, len(members))
	for k, i := range rank {
		room[i] = int(n) / len(members)
		if k < int(n)%len(members) {
			room[i]++
		}
	}
	dealt := make([]bool, n)
	for i, m := range members {
		for _, p := range m.partitions {
			if p < n && owner[p] == i && !dealt[p] && room[i] > 0 {
				dealt[p] = true
				room[i]--
				out[i] = append(out[i], p)
			}
		}
	}
	var free []int32
	for p := range n {
		if !dealt[p] {
			free = append(free, p)
		}
	}
	for i := range members {
		take := free[:min(room[i], len(free))]
		free = free[len(take):]
		out[i] = append(out[i], take...)
		slices.Sort(out[i])
	}
	return out
}
