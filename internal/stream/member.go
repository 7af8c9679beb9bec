package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Session timing. A transaction must be over before the group may give its partitions away, hence
// transactionTimeout < sessionTimeout; and both far above the 250-500 ms that a transaction takes.
const (
	transactionTimeout = 20 * time.Second
	sessionTimeout     = 30 * time.Second
	heartbeatInterval  = time.Second
)

// DefaultRebalanceTimeout is how long the group waits for a member that is busy: a transaction may take 20 s until the broker
// ends it, and its owner 15 s more to find out. Nothing else blocks a rebalance.
const DefaultRebalanceTimeout = 45 * time.Second

// Batch is what one Poll returns.
type Batch struct{ Partitions []PartitionBatch }

// PartitionBatch holds the records of one partition in offset order. A partition may come more than
// once in a Batch; later ones continue earlier ones. After a Nudge it may come without records.
type PartitionBatch struct {
	Topic     string
	Partition int32
	Records   []*Record
	// HighWatermark is the end of what can be read (the last stable offset), as the broker saw it when
	// it answered.
	HighWatermark int64
}

// Drained says that the batch ended where the partition ended at that time. Because a transaction's end
// marker takes an offset too, a partition written by transactions may never look drained.
func (b PartitionBatch) Drained() bool {
	n := len(b.Records)
	return n > 0 && b.Records[n-1].Offset+1 >= b.HighWatermark
}

// Len is the number of records.
func (b Batch) Len() int {
	n := 0
	for _, p := range b.Partitions {
		n += len(p.Records)
	}
	return n
}

// Rebalance callbacks. They run inside Poll on the caller's goroutine, never while a transaction is open, and while the
// group may go on rebalancing: what they hear of may be past already, which the next call then says.
type (
	// AssignedFunc hears of partitions that came, before the first record of them. ctx is that of the Poll. In a group that
	// is cooperative they are those that are new; in any other, all that this member now has, perhaps none.
	AssignedFunc func(ctx context.Context, partitions map[string][]int32)
	// LostFunc hears of partitions that went, by a revoke or because the group threw this member out.
	// Nothing can be committed for them any more.
	LostFunc func(ctx context.Context, partitions map[string][]int32)
)

// position of one partition since it was assigned.
type position struct {
	committed kgo.EpochOffset // where a rewind goes: the last commit, or where reading began
	next      kgo.EpochOffset // after the last record polled
	metadata  string          // of the last commit made here
}

type change struct {
	assigned   bool
	partitions map[string][]int32
}

// member is one consumer of a group: polling, rebalances, positions.
type member struct {
	cl       *kgo.Client
	conf     Config
	group    string
	instance string // "" for a dynamic member
	max      int
	// cooperative: a rebalance takes only what moves. Otherwise everything is given back and the share is handed out anew.
	cooperative bool
	balancer    *copartitioned // nil: another one
	held        bool           // partitions arrive paused
	assigned    AssignedFunc
	lost        LostFunc

	mu        sync.Mutex
	positions map[TopicPartition]*position
	nudged    map[TopicPartition]int64 // offsets that are fetched again and dropped
	owned     map[TopicPartition]bool  // as the group has it now, told to the owner or not
	changes   []change                 // not told to the owner yet
	fenced    bool                     // partitions went since the last end of a transaction
	awake     bool                     // Wake was called
	wake      context.CancelFunc
}

func newMember(c Config, group, instance string, maxPoll int, assigned AssignedFunc, lost LostFunc) member {
	return member{
		conf: c, group: group, instance: instance, max: maxPoll, assigned: assigned, lost: lost,
		positions: map[TopicPartition]*position{}, nudged: map[TopicPartition]int64{}, owned: map[TopicPartition]bool{},
	}
}

func (m *member) options(topics []string, rebalanceTimeout time.Duration) []kgo.Opt {
	opts := []kgo.Opt{
		kgo.ConsumerGroup(m.group),
		kgo.ConsumeTopics(topics...),
		kgo.BlockRebalanceOnPoll(),
		kgo.DisableAutoCommit(),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.SessionTimeout(sessionTimeout),
		kgo.RebalanceTimeout(orDefault(rebalanceTimeout, DefaultRebalanceTimeout)),
		kgo.HeartbeatInterval(heartbeatInterval),
		kgo.OnPartitionsAssigned(func(_ context.Context, cl *kgo.Client, p map[string][]int32) { m.came(cl, p) }),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, p map[string][]int32) { m.went(p) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, p map[string][]int32) { m.went(p) }),
	}
	switch {
	case m.cooperative:
		opts = append(opts, kgo.Balancers(kgo.CooperativeStickyBalancer()))
	case m.balancer != nil:
		// The second is what members of an earlier release speak.
		opts = append(opts, kgo.Balancers(m.balancer, kgo.RangeBalancer()))
	default:
		opts = append(opts, kgo.Balancers(kgo.RangeBalancer()))
	}
	if m.instance != "" {
		opts = append(opts, kgo.InstanceID(m.instance))
	}
	return opts
}

// came runs in the client's goroutine, before anything is fetched of the partitions: it notes the change and wakes Poll.
func (m *member) came(cl *kgo.Client, partitions map[string][]int32) {
	own := clonePartitions(partitions)
	if m.held && len(own) > 0 {
		cl.PauseFetchPartitions(own)
	}
	if m.balancer != nil {
		_, generation := cl.GroupMetadata()
		m.balancer.claim(own, generation)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.cooperative {
		// A transactional session does not tell of a second revoke before a transaction has ended. What comes now is all
		// there is.
		m.forget(m.ownedPartitions())
	}
	for topic, ps := range own {
		for _, p := range ps {
			m.owned[TopicPartition{topic, p}] = true
		}
	}
	if len(own) > 0 || !m.cooperative {
		m.changes = append(m.changes, change{true, own})
	}
	m.rouse()
}

// went is came for partitions that went.
func (m *member) went(partitions map[string][]int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget(clonePartitions(partitions))
	m.fenced = true
	m.rouse()
}

// forget takes partitions away. An owner that has not heard yet that they had come does not hear it any more: it would work
// for partitions that are somebody else's.
func (m *member) forget(gone map[string][]int32) {
	for topic, ps := range gone {
		for _, p := range ps {
			tp := TopicPartition{topic, p}
			delete(m.positions, tp)
			delete(m.nudged, tp)
			delete(m.owned, tp)
		}
	}
	m.changes = slices.DeleteFunc(m.changes, func(c change) bool {
		if !c.assigned {
			return false
		}
		if !m.cooperative {
			return true // the share that is handed out next takes its place
		}
		for topic, ps := range gone {
			c.partitions[topic] = slices.DeleteFunc(c.partitions[topic], func(p int32) bool { return slices.Contains(ps, p) })
			if len(c.partitions[topic]) == 0 {
				delete(c.partitions, topic)
			}
		}
		return len(c.partitions) == 0
	})
	if len(gone) > 0 {
		m.changes = append(m.changes, change{false, gone})
	}
}

func (m *member) ownedPartitions() map[string][]int32 {
	out := map[string][]int32{}
	for tp := range m.owned {
		out[tp.Topic] = append(out[tp.Topic], tp.Partition)
	}
	return out
}

func clonePartitions(partitions map[string][]int32) map[string][]int32 {
	out := map[string][]int32{}
	for topic, ps := range partitions {
		if len(ps) > 0 {
			out[topic] = slices.Clone(ps)
		}
	}
	return out
}

// rouse ends a wait for records.
func (m *member) rouse() {
	if m.wake != nil {
		m.wake()
	}
}

// Wake ends the wait of a Poll, of the running one or else of the next. It may be called by any goroutine.
func (m *member) Wake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.awake = true
	m.rouse()
}

// deliver tells the owner of rebalances, in order.
func (m *member) deliver(ctx context.Context) {
	for {
		m.mu.Lock()
		if len(m.changes) == 0 {
			m.mu.Unlock()
			return
		}
		c := m.changes[0]
		m.changes = m.changes[1:]
		m.mu.Unlock()
		if c.assigned && m.assigned != nil {
			m.assigned(ctx, c.partitions)
		} else if !c.assigned && m.lost != nil {
			m.lost(ctx, c.partitions)
		}
	}
}

// pending says whether the owner has something to hear, or the session something to clear.
func (m *member) pending() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fenced || len(m.changes) > 0
}

// poll returns what arrived, or an empty batch when the wait is over or Wake was called. It fails with ctx's error when ctx
// is done, cancelled or at its deadline. clear is called when partitions have gone since the last poll.
//
// The group may rebalance while the owner hears of changes, and is blocked from the first record on until the next poll.
func (m *member) poll(ctx context.Context, wait time.Duration, clear func(context.Context) error) (Batch, error) {
	within, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		m.cl.AllowRebalance()
		if err := m.settle(ctx, clear); err != nil {
			return Batch{}, err
		}
		fetches, err := m.fetch(within)
		if err != nil {
			return Batch{}, err
		}
		batch, from := m.note(fetches)
		switch {
		case m.pending() && m.cooperative:
			// A change that came while we waited must be heard first. What was fetched is read again after it; what was polled
			// before, and is not committed yet, the owner of a partition that stays still has.
			m.unread(from)
		case m.pending():
			// Likewise, and everything is handed out anew.
			m.rewind()
		case len(batch.Partitions) > 0:
			return batch, nil
		case ctx.Err() != nil:
			return Batch{}, ctx.Err()
		case m.woken(), within.Err() != nil:
			return Batch{}, nil
		}
	}
}

// woken says whether Wake was called, once.
func (m *member) woken() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.awake
	m.awake = false
	return was
}

// settle tells the owner of rebalances and clears the session.
func (m *member) settle(ctx context.Context, clear func(context.Context) error) error {
	if !m.pending() {
		return nil
	}
	m.deliver(ctx)
	return m.unfence(ctx, clear)
}

func (m *member) unfence(ctx context.Context, clear func(context.Context) error) error {
	m.mu.Lock()
	fenced := m.fenced
	m.fenced = false
	m.mu.Unlock()
	if !fenced || clear == nil {
		return nil
	}
	return clear(ctx)
}

func (m *member) fetch(ctx context.Context) (kgo.Fetches, error) {
	pctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m.mu.Lock()
	m.wake = cancel
	late := len(m.changes) > 0 || m.awake // came between deliver and here
	m.mu.Unlock()
	if late {
		cancel()
	}
	fetches := m.cl.PollRecords(pctx, m.max)
	m.mu.Lock()
	m.wake = nil
	m.mu.Unlock()
	for _, e := range fetches.Errors() {
		if err := classify(pctx, e); err != nil {
			return nil, err
		}
	}
	return fetches, nil
}

// classify decides which errors of a poll end the consumer: all but a wake-up and what the group heals by
// joining again.
func classify(pctx context.Context, e kgo.FetchError) error {
	if pctx.Err() != nil && errors.Is(e.Err, pctx.Err()) {
		return nil
	}
	var loss *kgo.ErrDataLoss
	if errors.As(e.Err, &loss) || errors.Is(e.Err, kerr.OffsetOutOfRange) {
		return fmt.Errorf("read %s/%d: %w: %w", e.Topic, e.Partition, ErrDataLoss, e.Err)
	}
	if _, ok := errors.AsType[*kgo.ErrGroupSession](e.Err); ok {
		var k *kerr.Error
		if !errors.As(e.Err, &k) || k.Retriable {
			return nil // the network, or a coordinator that moves: the client joins again by itself
		}
		switch {
		case errors.Is(e.Err, kerr.UnknownMemberID), errors.Is(e.Err, kerr.IllegalGeneration),
			errors.Is(e.Err, kerr.RebalanceInProgress), errors.Is(e.Err, kerr.GroupIDNotFound):
			return nil
		}
	}
	return fmt.Errorf("read %s/%d: %w", e.Topic, e.Partition, e.Err)
}

// note turns fetches into a batch and moves the positions; from is where the partitions of the batch were before it.
func (m *member) note(fetches kgo.Fetches) (b Batch, from map[TopicPartition]kgo.EpochOffset) {
	m.mu.Lock()
	defer m.mu.Unlock()
	from = map[TopicPartition]kgo.EpochOffset{}
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		n := len(p.Records)
		if n == 0 {
			return
		}
		end := p.LastStableOffset
		if end < 0 {
			end = p.HighWatermark
		}
		tp, first, last := TopicPartition{p.Topic, p.Partition}, p.Records[0], p.Records[n-1]
		fresh := p.Records
		if again, ok := m.nudged[tp]; ok {
			delete(m.nudged, tp)
			if first.Offset == again {
				fresh = fresh[1:]
			}
		}
		b.Partitions = append(b.Partitions, PartitionBatch{p.Topic, p.Partition, fresh, end})
		pos := m.positions[tp]
		if pos == nil {
			// Nothing between the committed offset and the first record is data, so that going back
			// to the first record is going back to the commit.
			pos = &position{committed: kgo.EpochOffset{Epoch: first.LeaderEpoch, Offset: first.Offset}}
			pos.next = pos.committed
			m.positions[tp] = pos
		}
		if _, earlier := from[tp]; !earlier { // a partition may come more than once
			from[tp] = pos.next
		}
		pos.next = kgo.EpochOffset{Epoch: last.LeaderEpoch, Offset: last.Offset + 1}
	})
	return b, from
}

// unread takes back a batch that nobody has seen. What rewind says of locks holds here too.
func (m *member) unread(from map[TopicPartition]kgo.EpochOffset) {
	m.mu.Lock()
	defer m.mu.Unlock()
	to := map[string]map[int32]kgo.EpochOffset{}
	for tp, at := range from {
		pos := m.positions[tp]
		if pos == nil {
			continue // it has gone
		}
		pos.next = at
		if to[tp.Topic] == nil {
			to[tp.Topic] = map[int32]kgo.EpochOffset{}
		}
		to[tp.Topic][tp.Partition] = at
	}
	m.cl.SetOffsets(to)
}

// rewind sets every partition back to its last commit; nudges that have not been answered stay. The caller has polled, so that
// the group cannot rebalance meanwhile; and it holds the lock that the rebalance callbacks take, so that it cannot touch a
// partition which went away and came back further on.
func (m *member) rewind() {
	m.mu.Lock()
	defer m.mu.Unlock()
	to := map[string]map[int32]kgo.EpochOffset{}
	for tp, pos := range m.positions {
		pos.next = pos.committed
		if to[tp.Topic] == nil {
			to[tp.Topic] = map[int32]kgo.EpochOffset{}
		}
		to[tp.Topic][tp.Partition] = pos.committed
		if again, ok := m.nudged[tp]; ok {
			to[tp.Topic][tp.Partition] = kgo.EpochOffset{Epoch: -1, Offset: again}
		}
	}
	m.cl.SetOffsets(to)
}

// Pause stops fetching the partitions of a topic; what was fetched of them and not polled is dropped and
// read again later.
func (m *member) Pause(topic string, partitions ...int32) {
	m.cl.PauseFetchPartitions(map[string][]int32{topic: partitions})
}

// Resume undoes Pause. A pause outlives the assignment: the client remembers it when the partition comes back.
func (m *member) Resume(topic string, partitions ...int32) {
	m.cl.ResumeFetchPartitions(map[string][]int32{topic: partitions})
}

// leave closes the client and gives the partitions to the other members at once. A static member keeps its place when it is
// closed, for its next life, and the group would wait for it until its session times out; so it is taken out by name, unless
// nobody else is there who could take over.
func (m *member) leave(ctx context.Context) error {
	id, _ := m.cl.GroupMetadata()
	m.cl.CloseAllowingRebalance()
	if m.instance == "" || id == "" {
		return nil // a dynamic member leaves when it is closed
	}
	return connect(ctx, m.conf, func(ctx context.Context, cl *kgo.Client) error {
		group, err := kadm.NewClient(cl).DescribeGroups(ctx, m.group)
		if err != nil {
			return fmt.Errorf("leave group %s: %w", m.group, err)
		}
		if others := len(group[m.group].Members); others < 2 {
			return nil
		}
		r := kmsg.NewPtrLeaveGroupRequest()
		r.Group = m.group
		one := kmsg.NewLeaveGroupRequestMember()
		one.MemberID, one.InstanceID, one.Reason = id, new(m.instance), new("stopped in good order")
		r.Members = append(r.Members, one)
		answer, err := r.RequestWith(ctx, cl)
		if err != nil {
			return fmt.Errorf("leave group %s: %w", m.group, err)
		}
		errs := []error{kerr.ErrorForCode(answer.ErrorCode)}
		for _, a := range answer.Members {
			errs = append(errs, kerr.ErrorForCode(a.ErrorCode))
		}
		if err := errors.Join(errs...); err != nil && !errors.Is(err, kerr.UnknownMemberID) && !errors.Is(err, kerr.FencedInstanceID) {
			return fmt.Errorf("leave group %s as %s: %w", m.group, m.instance, err)
		}
		return nil // not there any more, or its successor is
	})
}
