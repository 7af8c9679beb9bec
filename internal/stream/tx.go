package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TxConfig configures a Tx; zero numbers take the defaults.
type TxConfig struct {
	// Group is the consumer group whose offsets the transactions commit.
	Group string
	// TransactionalID must be stable and unique per instance: a new Tx with the same id fences the old
	// one, which is how a zombie is kept out.
	TransactionalID string
	// InstanceID makes the member static: its partitions wait for it during a restart. Empty: dynamic.
	InstanceID string
	Topics     []string
	// MaxPoll bounds the records of one Poll; 0 returns everything that was fetched, which
	// FetchMaxBytes bounds.
	MaxPoll int
	// FetchMaxBytes bounds one fetch from one broker, FetchMaxPartitionBytes each partition in it.
	// Defaults 16 MiB and 2 MiB.
	FetchMaxBytes          int32
	FetchMaxPartitionBytes int32
	// MaxBufferedRecords bounds what waits for the broker; Produce blocks beyond it. Default 200,000.
	MaxBufferedRecords int
	// KeepMarkers makes Poll return the markers that end transactions, as records with Attrs.IsControl, so that a position
	// gets to the very end of a partition. By default they are left out.
	KeepMarkers bool
	// Linger of the producer; default 2 ms. The commit flushes, so it bounds small batches only.
	Linger time.Duration
	// RebalanceTimeout is how long the group waits for this member when others come or go. Default
	// DefaultRebalanceTimeout; more than a transaction takes.
	RebalanceTimeout time.Duration
	// CoPartitioned gives partition p of every topic to the same member and, when members come or go, moves as few as can
	// be. Without it, range assignment does the first alone.
	CoPartitioned bool
	// Held makes every partition that is assigned arrive paused: the owner resumes it when it is ready for its records.
	Held bool
	// OnAssigned and OnLost hear of rebalances, inside Poll.
	OnAssigned AssignedFunc
	OnLost     LostFunc
}

// Validate returns every problem, joined.
func (c TxConfig) Validate() error {
	var errs []error
	if c.Group == "" {
		errs = append(errs, errors.New("group: empty"))
	}
	if c.TransactionalID == "" {
		errs = append(errs, errors.New("transactional id: empty"))
	}
	if len(c.Topics) == 0 {
		errs = append(errs, errors.New("topics: none"))
	}
	return errors.Join(errs...)
}

// Tx consumes, processes and produces in transactions. The cycle is Poll, Begin, Produce..., Commit or
// Abort. One goroutine calls them; Produce may be called by several, which must be done before Commit or Abort is; Wake by any.
// Package documentation has the commit rule. Any error of Poll, Begin,
// Commit or Abort ends the Tx: Close it and start a new one, which fences the old and continues at the
// last commit. (Commit returning false without an error is an abort and no such end.)
type Tx struct {
	member
	session  *kgo.GroupTransactSession
	topicIDs map[string][16]byte
	failure  produceFailure
	beats    beats

	identified bool // has fenced its predecessors
}

type produceFailure struct {
	mu  sync.Mutex
	err error
}

func (f *produceFailure) promise(r *Record, err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = fmt.Errorf("produce to %s/%d: %w", r.Topic, r.Partition, err)
	}
}

// clear forgets the failure and returns it.
func (f *produceFailure) clear() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.err
	f.err = nil
	return err
}

// NewTx joins the group in the background.
func NewTx(c Config, tc TxConfig) (*Tx, error) {
	if err := tc.Validate(); err != nil {
		return nil, fmt.Errorf("transactions: %w", err)
	}
	opts, err := c.options()
	if err != nil {
		return nil, err
	}
	t := &Tx{
		member:   newMember(c, tc.Group, tc.InstanceID, tc.MaxPoll, tc.OnAssigned, tc.OnLost),
		topicIDs: map[string][16]byte{},
	}
	t.held = tc.Held
	if tc.CoPartitioned {
		t.balancer = &copartitioned{}
	}
	opts = append(opts, t.member.options(tc.Topics, tc.RebalanceTimeout)...)
	opts = append(opts, c.observe(tc.Group)...)
	opts = append(opts,
		kgo.WithHooks(&t.beats),
		kgo.TransactionalID(tc.TransactionalID),
		kgo.TransactionTimeout(transactionTimeout),
		// No RecordDeliveryTimeout: the client counts it from the record's timestamp, which is event time.
		kgo.ProducerLinger(orDefault(tc.Linger, 2*time.Millisecond)),
		kgo.MaxBufferedRecords(orDefault(tc.MaxBufferedRecords, 200_000)),
		kgo.FetchMaxBytes(orDefault(tc.FetchMaxBytes, 16<<20)),
		kgo.FetchMaxPartitionBytes(orDefault(tc.FetchMaxPartitionBytes, 2<<20)),
		kgo.FetchMaxWait(250*time.Millisecond), // how long an idle partition holds up the news of a pause or resume
	)
	if tc.KeepMarkers {
		opts = append(opts, kgo.KeepControlRecords())
	}
	if t.session, err = kgo.NewGroupTransactSession(opts...); err != nil {
		return nil, fmt.Errorf("transactions of %s: %w", tc.TransactionalID, err)
	}
	t.cl = t.session.Client()
	return t, nil
}

// Poll waits for records. It returns an empty batch when the wait is over and ctx's error when ctx is done, cancelled or at
// its deadline. It runs OnAssigned and OnLost.
func (t *Tx) Poll(ctx context.Context, wait time.Duration) (Batch, error) {
	if !t.identified {
		// The client would take its producer id with the first record only. Taking it now fences what
		// died under this id: otherwise its open transaction would hold up our own committed offsets,
		// and so this very poll, until the broker times it out.
		within, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		if _, _, err := t.cl.ProducerID(within); err != nil {
			if ctx.Err() == nil && within.Err() != nil {
				return Batch{}, nil
			}
			return Batch{}, fmt.Errorf("take transactional id: %w", err)
		}
		t.identified = true
	}
	return t.poll(ctx, wait, t.clear)
}

// clear ends an empty transaction: the session remembers a revoke until the next end and would turn the
// first transaction of the new assignment into an abort.
func (t *Tx) clear(ctx context.Context) error {
	if err := t.session.Begin(); err != nil {
		return fmt.Errorf("clear session after a rebalance: %w", err)
	}
	if _, err := t.session.End(ctx, kgo.TryAbort); err != nil {
		return fmt.Errorf("clear session after a rebalance: %w", err)
	}
	return nil
}

// Nudge makes the next Poll return partitions of which nothing new has come, each without records, so that a
// transaction can commit metadata for them: the client commits only where it has polled something. next is each
// partition's first offset that was not polled; the record before it, which must still be there, is fetched once more
// and dropped. A rebalance may undo it, and a nudge in OnAssigned may come before the client has its place in the
// partition: poll with a deadline, and nudge again.
func (t *Tx) Nudge(next map[TopicPartition]int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.changes) > 0 {
		return // the caller does not know yet what is its own
	}
	to := map[string]map[int32]kgo.EpochOffset{}
	for tp, offset := range next {
		if t.positions[tp] == nil {
			at := kgo.EpochOffset{Epoch: -1, Offset: offset}
			t.positions[tp] = &position{committed: at, next: at}
		}
		t.nudged[tp] = offset - 1
		if to[tp.Topic] == nil {
			to[tp.Topic] = map[int32]kgo.EpochOffset{}
		}
		to[tp.Topic][tp.Partition] = kgo.EpochOffset{Epoch: -1, Offset: offset - 1} // -1: there is nothing to validate
	}
	t.cl.SetOffsets(to)
}

// Ends asks the brokers where each partition ends, with what transactions have open there. Partitions for which nobody
// answers are left out.
func (t *Tx) Ends(ctx context.Context, topics ...string) (map[TopicPartition]int64, error) {
	listed, err := kadm.NewClient(t.cl).ListEndOffsets(ctx, topics...)
	if err != nil && !leaderless(err) {
		return nil, fmt.Errorf("end offsets of %v: %w", topics, err)
	}
	out := map[TopicPartition]int64{}
	listed.Each(func(o kadm.ListedOffset) {
		if o.Err == nil {
			out[TopicPartition{o.Topic, o.Partition}] = o.Offset
		}
	})
	return out, nil
}

// Begin opens a transaction.
func (t *Tx) Begin() error {
	_ = t.failure.clear() // the last transaction's
	if err := t.session.Begin(); err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	return nil
}

// Produce adds a record to the transaction. It returns at once unless the buffer is full; a failure
// turns the commit into an abort. The record must not be changed before Commit returns.
func (t *Tx) Produce(r *Record) {
	t.session.Produce(context.Background(), r, t.failure.promise)
}

// Commit commits the transaction with the offsets of everything polled. meta gives the text to store
// beside the offset of a partition and whether to store one: true commits the partition's place again
// even if it did not move; false keeps what the last commit of this Tx stored. It is asked only for
// partitions that Poll has returned since they were assigned. committed is false after an abort, see the
// package documentation for what the caller owes then.
//
// ctx needs a deadline. A commit whose place in the group was lost, as after the brokers were away for longer than the
// client tries (about a second), fails after a few seconds without a heartbeat.
func (t *Tx) Commit(ctx context.Context, meta func(topic string, partition int32) (string, bool)) (committed bool, err error) {
	return t.CommitUpTo(ctx, nil, meta)
}

// CommitUpTo is Commit for callers that keep polled records for a later transaction: upTo names the next
// record that is not processed, for each partition of which something is kept.
func (t *Tx) CommitUpTo(
	ctx context.Context,
	upTo map[TopicPartition]int64,
	meta func(topic string, partition int32) (string, bool),
) (committed bool, err error) {
	if err := t.cl.Flush(ctx); err != nil {
		return false, fmt.Errorf("flush transaction: %w", err)
	}
	if err := t.failure.clear(); err != nil {
		return false, t.abort(ctx)
	}
	places := t.places(upTo, meta)
	ctx, ended := t.beats.watch(ctx)
	defer ended()
	ctx = kgo.PreTxnCommitFnContext(ctx, func(r *kmsg.TxnOffsetCommitRequest) error {
		t.rewrite(r, places)
		return nil
	})
	committed, err = t.session.End(ctx, kgo.TryCommit)
	if cause := context.Cause(ctx); errors.Is(cause, errSilence) && !committed {
		// Whatever End made of it, its abort did not get through either.
		return false, fmt.Errorf("end transaction: %w", cause)
	}
	if err != nil {
		return false, fmt.Errorf("end transaction: %w", err)
	}
	if !committed {
		t.rewind()
		return false, nil
	}
	t.advance(places)
	return true, nil
}

// place is what a commit says about one partition.
type place struct {
	at       kgo.EpochOffset
	metadata string
}

func (t *Tx) places(upTo map[TopicPartition]int64, meta func(string, int32) (string, bool)) map[TopicPartition]place {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[TopicPartition]place, len(t.positions))
	for tp, pos := range t.positions {
		p := place{pos.next, pos.metadata}
		if at, ok := upTo[tp]; ok && at != pos.next.Offset {
			// The epoch of the record before `at` is not kept; -1 says unknown, which is always safe.
			p.at = kgo.EpochOffset{Epoch: -1, Offset: at}
		}
		again := false
		if meta != nil {
			if text, ok := meta(tp.Topic, tp.Partition); ok {
				p.metadata, again = text, true
			}
		}
		if again || p.at.Offset != pos.committed.Offset {
			out[tp] = p
		}
	}
	return out
}

// rewrite replaces what the session would commit, everything polled, by our places.
func (t *Tx) rewrite(r *kmsg.TxnOffsetCommitRequest, places map[TopicPartition]place) {
	for _, rt := range r.Topics {
		t.topicIDs[rt.Topic] = rt.TopicID
	}
	r.Topics = r.Topics[:0]
	index := map[string]int{}
	for tp, p := range places {
		i, ok := index[tp.Topic]
		if !ok {
			rt := kmsg.NewTxnOffsetCommitRequestTopic()
			rt.Topic, rt.TopicID = tp.Topic, t.topicIDs[tp.Topic]
			i = len(r.Topics)
			index[tp.Topic] = i
			r.Topics = append(r.Topics, rt)
		}
		rp := kmsg.NewTxnOffsetCommitRequestTopicPartition()
		rp.Partition, rp.Offset, rp.LeaderEpoch = tp.Partition, p.at.Offset, p.at.Epoch
		rp.Metadata = new(p.metadata)
		r.Topics[i].Partitions = append(r.Topics[i].Partitions, rp)
	}
}

func (t *Tx) advance(places map[TopicPartition]place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for tp, p := range places {
		if pos := t.positions[tp]; pos != nil {
			pos.committed, pos.metadata = p.at, p.metadata
		}
	}
}

// Abort throws the transaction away and rewinds to the last commit.
func (t *Tx) Abort(ctx context.Context) error { return t.abort(ctx) }

func (t *Tx) abort(ctx context.Context) error {
	if _, err := t.session.End(ctx, kgo.TryAbort); err != nil {
		return fmt.Errorf("abort transaction: %w", err)
	}
	_ = t.failure.clear() // thrown away with its records
	t.rewind()
	return nil
}

// Close ends this member: a dynamic one leaves the group, a static one keeps its place for its next life. An open transaction
// is left to the next Tx with the same id, or to the broker's timeout.
func (t *Tx) Close() { t.session.CloseAllowingRebalance() }

// Leave is Close for a member that is not expected back soon: a static one gives its partitions to the others at once, if
// there are any. No transaction may be open.
func (t *Tx) Leave(ctx context.Context) error { return t.leave(ctx) }
