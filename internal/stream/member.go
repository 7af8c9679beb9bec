package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// ErrDataLoss is wrapped by errors that mean that the broker no longer holds what comes next: records
// were deleted before they were read, or a leader came back shorter than it was.
var ErrDataLoss = errors.New("the broker lost records that were not read yet")

// Session timing. A transaction must be over before the group may give its partitions away, hence
// transactionTimeout < sessionTimeout; and both far above the 250-500 ms that a transaction takes.
const (
	transactionTimeout = 20 * time.Second
	sessionTimeout     = 30 * time.Second
	rebalanceTimeout   = 20 * time.Second
	heartbeatInterval  = time.Second
)

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

// Rebalance callbacks. They run inside Poll on the caller's goroutine, never while a transaction is open.
type (
	// AssignedFunc hears of partitions that came, before the first record of them. ctx does not have the
	// deadline of the Poll that it runs in; it is cancelled with that Poll, unless its deadline had passed:
	// long work should watch the context of its service too.
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
	max      int
	assigned AssignedFunc
	lost     LostFunc

	mu        sync.Mutex
	positions map[TopicPartition]*position
	nudged    map[TopicPartition]int64 // offsets that are fetched again and dropped
	changes   []change                 // not told to the owner yet
	fenced    bool                     // partitions went since the last end of a transaction
	wake      context.CancelFunc
}

func (m *member) options(group, instance string, topics []string) []kgo.Opt {
	opts := []kgo.Opt{
		kgo.ConsumerGroup(group),
		kgo.ConsumeTopics(topics...),
		// Range gives partition p of every topic to one member, which the join needs; sticky and
		// uniform assignors do not.
		kgo.Balancers(kgo.RangeBalancer()),
		kgo.BlockRebalanceOnPoll(),
		kgo.DisableAutoCommit(),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.SessionTimeout(sessionTimeout),
		kgo.RebalanceTimeout(rebalanceTimeout),
		kgo.HeartbeatInterval(heartbeatInterval),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, p map[string][]int32) { m.rebalanced(true, p) }),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, p map[string][]int32) { m.rebalanced(false, p) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, p map[string][]int32) { m.rebalanced(false, p) }),
	}
	if instance != "" {
		opts = append(opts, kgo.InstanceID(instance))
	}
	return opts
}

// rebalanced runs in the client's goroutine: it notes the change and wakes Poll.
func (m *member) rebalanced(assigned bool, partitions map[string][]int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	own := make(map[string][]int32, len(partitions))
	for topic, ps := range partitions {
		own[topic] = append([]int32(nil), ps...)
		n += len(ps)
		if !assigned {
			for _, p := range ps {
				delete(m.positions, TopicPartition{topic, p})
				delete(m.nudged, TopicPartition{topic, p})
			}
		}
	}
	if !assigned {
		m.fenced = true
	}
	if n > 0 {
		m.changes = append(m.changes, change{assigned, own})
	}
	if m.wake != nil {
		m.wake()
	}
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

// poll returns what arrived, or an empty batch at ctx's deadline. clear is called, with no rebalance
// callback running late, when partitions have gone since the last poll.
func (m *member) poll(ctx context.Context, clear func(context.Context) error) (Batch, error) {
	for {
		m.cl.AllowRebalance()
		if err := m.settle(ctx, clear); err != nil {
			return Batch{}, err
		}
		fetches, err := m.fetch(ctx)
		if err != nil {
			return Batch{}, err
		}
		// Rebalances are blocked from here if there are records. A change that came while we waited
		// must be heard first; the records belong to the new assignment and are read again after it.
		if m.pending() {
			m.note(fetches)
			if err := m.settle(ctx, clear); err != nil {
				return Batch{}, err
			}
			m.rewind()
			continue
		}
		batch := m.note(fetches)
		if len(batch.Partitions) == 0 {
			switch {
			case errors.Is(ctx.Err(), context.DeadlineExceeded):
				return Batch{}, nil
			case ctx.Err() != nil:
				return Batch{}, ctx.Err()
			}
			continue
		}
		return batch, nil
	}
}

// settle tells the owner of rebalances and clears the session. Neither may be cut off by the deadline of
// one poll, which says how long to wait for records: they end early only when the poll is cancelled.
func (m *member) settle(poll context.Context, clear func(context.Context) error) error {
	if !m.pending() {
		return nil
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(poll))
	defer cancel()
	defer context.AfterFunc(poll, func() {
		if errors.Is(poll.Err(), context.Canceled) {
			cancel()
		}
	})()
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
	late := len(m.changes) > 0 // came between deliver and here
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

// note turns fetches into a batch and moves the positions.
func (m *member) note(fetches kgo.Fetches) Batch {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b Batch
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
			m.positions[tp] = pos
		}
		pos.next = kgo.EpochOffset{Epoch: last.LeaderEpoch, Offset: last.Offset + 1}
	})
	return b
}

// rewind sets every partition back to its last commit; nudges that have not been answered stay. It holds the lock that the rebalance callbacks
// take, so that it cannot touch a partition which went away and came back further on.
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

// Resume undoes Pause.
func (m *member) Resume(topic string, partitions ...int32) {
	m.cl.ResumeFetchPartitions(map[string][]int32{topic: partitions})
}
