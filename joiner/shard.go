package joiner

import (
	"bytes"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"ctrloop/internal/invariant"
	"ctrloop/internal/stream"
	"ctrloop/joiner/segment"
	"ctrloop/joiner/window"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// inputTopic by window.Input.
var inputTopic = [2]string{window.Impressions: schemas.TopicImpressions, window.Clicks: schemas.TopicClicks}

func inputOf(topic string) window.Input {
	if topic == schemas.TopicClicks {
		return window.Clicks
	}
	return window.Impressions
}

// Suspicion says of which departments the labels are not to be learned from.
type Suspicion interface {
	Suspect(department []byte) bool
}

// Shard joins one partition of both inputs: everything that is done for a partition except talking to the broker. One goroutine
// at a time uses it.
type Shard struct {
	partition int32
	of        int64 // partitions
	w         *window.Window
	sequence  int64    // of the last committed transaction
	hash      uint64   // of the state at the last commit
	committed [2]int64 // first offset not consumed, at the last commit
	next      [2]int64 // the same in the running transaction
	first     [2]int64 // the first event time of each input since assignment, for the lead over a silent one
	paused    [2]bool
	epoch     [2]int32 // leader epoch of the last record of each input, -1: not known
	settled   segment.Place
	keeper    *segment.Keeper // nil: no segments

	progress  bool // the running transaction has the partition in it
	suspicion Suspicion
	health    health
	stats     counts
	slab      slab
	audit     audit
	proposed  metadata // what the running commit stores
}

// counts are what a transaction adds to the counters if it commits.
type counts struct {
	records [2]int
	labels  [5]int // by kind
	lates   map[schemas.LateReason]int
	dead    map[schemas.DeadLetterReason]int
	behind  [2]int64 // records between what was read and the end of the input
}

// errState says that the client and the state have come apart: the session must be built anew.
var errState = errors.New("join state and consumed offsets have come apart")

// NewShard returns the shard of a partition over a window, whose inputs go on at next, after so many transactions. Without a
// suspicion nothing is judged.
func NewShard(by Suspicion, partition int32, w *window.Window, next [2]int64, sequence int64) *Shard {
	return &Shard{
		suspicion: by, health: newHealth(by == nil),
		partition: partition, w: w, committed: next, next: next, sequence: sequence, hash: w.Hash(),
		first: [2]int64{window.None, window.None}, epoch: [2]int32{-1, -1},
		stats: counts{lates: map[schemas.LateReason]int{}, dead: map[schemas.DeadLetterReason]int{}},
	}
}

// Process joins the polled records of this partition and hands everything that comes out to produce. It closes windows
// as far as closing lets it, all of them if that is nil. What produce gets is valid until Commit.
// Impressions go first: every click that finds its impression in the same batch then need not wait for it.
func (s *Shard) Process(batches []stream.PartitionBatch, closing *allowance, produce func(*stream.Record)) error {
	for _, in := range []window.Input{window.Impressions, window.Clicks} {
		for _, b := range batches {
			if inputOf(b.Topic) != in {
				continue
			}
			if err := s.consume(in, b, produce); err != nil {
				return err
			}
		}
	}
	if err := s.advance(closing); err != nil {
		return err
	}
	s.emit(produce)
	if invariant.Enabled {
		invariant.NoError(fmt.Sprintf("ledger of partition %d", s.partition), s.w.Check())
	}
	return nil
}

func (s *Shard) consume(in window.Input, b stream.PartitionBatch, produce func(*stream.Record)) error {
	for i, r := range b.Records {
		if i%window.Block == 0 {
			s.warm(b.Records[i:min(i+window.Block, len(b.Records))])
		}
		if r.Offset < s.next[in] {
			return fmt.Errorf(
				"%s/%d: got offset %d, but the state holds everything before %d: %w",
				r.Topic,
				r.Partition,
				r.Offset,
				s.next[in],
				errState,
			)
		}
		stale := s.stale()
		event, category, err := apply(s.w, in, r)
		switch {
		case !event || s.stale() > stale:
		case in == window.Impressions:
			s.health.impression(r.Timestamp.UnixMilli(), department(category))
		default:
			s.health.click(r.Timestamp.UnixMilli())
		}
		if err != nil {
			reason, fatal := recordError(err)
			if fatal != nil {
				return fatal
			}
			s.stats.dead[reason]++
			produce(&stream.Record{
				// Keyed, though it be by nothing: a record without a key is one for a partition, which dlq.v1 may not have.
				Topic: schemas.TopicDeadLetters, Key: append([]byte{}, r.Key...), Timestamp: r.Timestamp,
				Value: marshal(deadLetter(reason, err, r.Topic, r.Partition, r.Offset, r.Key, r.Value)),
			})
		}
		if s.first[in] == window.None {
			s.first[in] = s.w.MaxTime(in)
		}
		s.next[in], s.epoch[in] = r.Offset+1, r.LeaderEpoch
	}
	s.progress = true
	s.stats.records[in] += len(b.Records)
	s.stats.behind[in] = max(0, b.HighWatermark-s.next[in])
	return nil
}

// stale counts the events that change nothing for those who learn, and so are none to the breaker: what is late, and what was
// there already, as when somebody sends a log again.
func (s *Shard) stale() uint64 {
	l := s.w.Ledger()
	return l.Duplicate + l.LateImpressions + l.Repeated + l.LateClicks
}

// warm prepares the window for the next records.
func (s *Shard) warm(records []*stream.Record) {
	var ids [window.Block]schemas.ImpressionID
	n := 0
	for _, r := range records {
		if len(r.Key) == len(ids[n]) {
			ids[n] = schemas.ImpressionID(r.Key)
			n++
		}
	}
	s.w.Warm(ids[:n])
}

// errRecord wraps what is wrong with one record, as opposed to with the join.
type errRecord struct{ error }

func (e errRecord) Unwrap() error { return e.error }

func recordError(err error) (schemas.DeadLetterReason, error) {
	var r errRecord
	if !errors.As(err, &r) {
		return "", err
	}
	return deadReason(r.error), nil
}

// apply feeds one record to a window: live and rebuild are the same code. event says that it was an
// impression or a click; category is the impression's, of the bytes of r.
func apply(w *window.Window, in window.Input, r *stream.Record) (event bool, category []byte, err error) {
	for _, h := range r.Headers {
		if h.Key == schemas.HeaderPunctuation {
			var p eventpb.Punctuation
			if err := proto.Unmarshal(r.Value, &p); err != nil {
				return false, nil, errRecord{fmt.Errorf("%w: punctuation: %w", eventpb.ErrWire, err)}
			}
			promise := window.Promise{Source: p.Source, Covers: p.Covers, Parts: p.Parts, LowMS: p.LowWatermarkMs, Closed: p.Closed}
			if err := w.Punctuate(in, promise); err != nil {
				return false, nil, errRecord{err}
			}
			return false, nil, nil
		}
	}
	if in == window.Impressions {
		var parts window.Parts
		id, ok := parts.Cut(r.Value)
		if !ok {
			var err error
			if id, err = decodeImpression(r.Value); err != nil {
				return false, nil, errRecord{err}
			}
		}
		if err := checkKey(r, id); err != nil {
			return false, nil, errRecord{err}
		}
		if !ok {
			parts.CutAny(r.Value, id)
		}
		return true, parts.Category(), w.Insert(&parts, id, r.Offset)
	}
	id, at, err := decodeClick(r.Value)
	if err == nil {
		err = checkKey(r, id)
	}
	if err != nil {
		return false, nil, errRecord{err}
	}
	return true, nil, w.Click(r.Value, id, at, r.Offset)
}

// checkKey: the key decides the partition, so with another key an impression, its clicks and its labels would
// lie in different partitions and never meet.
func checkKey(r *stream.Record, id schemas.ImpressionID) error {
	if !bytes.Equal(r.Key, id[:]) {
		return fmt.Errorf("%w: the record's key is %x, not the impression id %s", schemas.ErrBadID, r.Key, id)
	}
	return nil
}

// emit turns the window's output into records.
func (s *Shard) emit(produce func(*stream.Record)) {
	for i := range s.w.Labels {
		l := &s.w.Labels[i]
		s.audit.add(l, s.partition)
		s.stats.labels[l.Kind]++
		d := department(l.Category())
		s.health.label(l, d)
		produce(s.slab.label(l, s.partition, s.suspicion != nil && s.suspicion.Suspect(d)))
	}
	for i := range s.w.Lates {
		l := &s.w.Lates[i]
		s.health.late(l)
		s.stats.lates[l.Reason]++
		produce(lateRecord(l, s.partition))
	}
	for _, r := range s.audit.records(s.partition) {
		produce(r)
	}
	s.w.ResetOutput()
}

// advance moves the watermark as far as the allowance goes.
func (s *Shard) advance(closing *allowance) error {
	settled := func(l window.Ledger) int { return int(l.FinalNegative + l.OrphanExpired + l.Provisional) }
	before, limit := settled(s.w.Ledger()), closing.take()
	err := s.w.Advance(limit)
	closing.giveBack(limit, settled(s.w.Ledger())-before)
	return err
}

// needed is an input of which records shape the windows that are open. It is one that is not paused, if it can be.
func (s *Shard) needed() (in window.Input, ok bool) {
	from := s.w.Snapshot(s.next).RewindOffset
	for _, i := range []window.Input{window.Impressions, window.Clicks} {
		if from[i] < s.next[i] && (!ok || s.paused[in]) {
			in, ok = i, true
		}
	}
	return in, ok
}

// Propose is the metadata for the commit of the running transaction, none if the partition is not in it.
func (s *Shard) Propose(cfg Config) (string, bool) {
	if !s.progress {
		return "", false
	}
	s.proposed = metadata{
		Sequence: s.sequence + 1, WindowMS: cfg.Window.Milliseconds(), BucketMS: cfg.Bucket.Milliseconds(),
		ObserveMS: cfg.Observe.Milliseconds(), Partitions: s.of,
		Snapshot: s.w.Snapshot(s.next),
	}
	return s.proposed.String(), true
}

// Commit follows a committed transaction.
func (s *Shard) Commit() {
	if s.progress {
		invariant.True(
			s.next[0] >= s.committed[0] && s.next[1] >= s.committed[1],
			"offsets of partition %d fell from %v to %v",
			s.partition,
			s.committed,
			s.next,
		)
		s.sequence++
	}
	s.committed = s.next
	s.w.Commit()
	s.health.commit()
	s.hash = s.w.Hash()
	s.reset()
	if s.keeper != nil {
		s.settled = segment.Place{Sequence: s.sequence, Next: s.committed, Epoch: s.epoch}
		s.keeper.Keep(s.w, s.settled)
	}
}

// keep gives a shard that has just been rebuilt its keeper.
func (s *Shard) keep(k *segment.Keeper) {
	s.keeper, s.settled = k, segment.Place{Sequence: s.sequence, Next: s.committed, Epoch: s.epoch}
}

// leave follows the end of the session or of the assignment. orderly: no transaction is open, so the state is the one
// of the last commit and worth keeping.
func (s *Shard) leave(orderly bool) {
	switch {
	case s.keeper == nil:
	case orderly && s.settled.Sequence == s.sequence && s.w.Hash() == s.hash:
		s.keeper.Close(s.w, s.settled)
	default:
		s.keeper.Release()
	}
}

// rollback follows an aborted one. It fails when the state is not what it was at the last commit.
func (s *Shard) rollback() error {
	s.next = s.committed
	s.w.Rollback()
	s.reset()
	if h := s.w.Hash(); h != s.hash {
		return fmt.Errorf("partition %d: hash %016x after an abort, %016x at the last commit: %w", s.partition, h, s.hash, errState)
	}
	return nil
}

func (s *Shard) reset() {
	s.progress = false
	s.stats.records, s.stats.labels = [2]int{}, [5]int{}
	clear(s.stats.lates)
	clear(s.stats.dead)
	s.health.reset()
	s.slab.reset()
	s.audit.reset()
}

// lead is by how much an input is ahead of the other one in event time, ms. Over an input that was never
// heard of, it is the stretch of event time that was read.
func (s *Shard) lead(in window.Input) int64 {
	mine, other := s.w.MaxTime(in), s.w.MaxTime(1-in)
	switch {
	case mine == window.None:
		return 0
	case other == window.None && s.first[in] == window.None:
		return 0
	case other == window.None:
		return mine - s.first[in]
	}
	return mine - other
}
