package joiner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"ctrloop/internal/stream"
)

// slowRebuild is after how long a partition that waits for its state is reported.
const slowRebuild = 15 * time.Second

// holding is a partition that the group has given to this instance. Its state is made ready beside the poll loop, by one job at
// a time; until then the client does not fetch it. All fields belong to the poll loop.
type holding struct {
	partition int32
	ctx       context.Context // of the running job; cancelled when the partition goes
	cancel    context.CancelFunc
	busy      bool   // a job is running
	gone      bool   // the partition was taken away, and the job that runs must end first
	away      bool   // given back to the group for the time of a rebalance: it may come back
	parked    *Shard // ready, but away
	since     time.Time
}

// readied is what a job ends with.
type readied struct {
	h     *holding
	share int // the assignment whose committed offsets the state was held against
	shard *Shard
	err   error
}

// ownership follows the group: which partitions this instance has, and which of them are ready to be joined.
type ownership struct {
	ctx    context.Context // of the jobs
	cancel context.CancelFunc
	held   map[int32]*holding
	share  int           // counts assignments
	slots  chan struct{} // bounds the rebuilds that run at once
	jobs   sync.WaitGroup
	told   time.Time // when slow ones were last reported

	mu   sync.Mutex
	done []readied
}

func newOwnership(ctx context.Context, workers int) *ownership {
	ctx, cancel := context.WithCancel(ctx)
	return &ownership{ctx: ctx, cancel: cancel, held: map[int32]*holding{}, slots: make(chan struct{}, workers)}
}

// finish hands the result of a job to the poll loop.
func (o *ownership) finish(r readied) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.done = append(o.done, r)
}

func (o *ownership) finished() []readied {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.done
	o.done = nil
	return out
}

// places is what the group has committed and where the inputs begin, asked for once for all partitions of an assignment.
type places struct {
	done      chan struct{} // closed when the answer is there
	committed map[stream.TopicPartition]stream.Committed
	start     map[stream.TopicPartition]int64
	err       error
}

func (se *session) lookUp() *places {
	at := &places{done: make(chan struct{})}
	se.own.jobs.Go(func() {
		defer close(at.done)
		if at.committed, at.err = stream.CommittedOffsets(se.own.ctx, se.cfg.Kafka, se.cfg.Group, inputTopic[:]...); at.err == nil {
			at.start, at.err = stream.StartOffsets(se.own.ctx, se.cfg.Kafka, inputTopic[:]...)
		}
	})
	return at
}

// assigned hears of the share that the group has dealt out anew. What this instance had before and has again goes on with the
// state that it has, once that was held against the committed offsets; what is new is rebuilt; the rest is let go.
func (se *session) assigned(_ context.Context, partitions map[string][]int32) {
	ps, clicks := slices.Clone(partitions[inputTopic[0]]), slices.Clone(partitions[inputTopic[1]])
	slices.Sort(ps)
	slices.Sort(clicks)
	if !slices.Equal(ps, clicks) {
		se.failed = fmt.Errorf(
			"the group gave partitions %v of %s and %v of %s: every member must use an assignment by which both sides of the join meet",
			ps, inputTopic[0], clicks, inputTopic[1],
		)
		return
	}
	se.own.share++
	for p, h := range se.own.held {
		if !slices.Contains(ps, p) {
			se.release(h)
		}
	}
	at := se.lookUp()
	kept := 0
	for _, p := range ps {
		h := se.own.held[p]
		if h == nil {
			h = &holding{partition: p}
			se.own.held[p] = h
		}
		h.gone, h.away, h.since = false, false, time.Now()
		se.ledgers.expect(p)
		if h.parked != nil {
			kept++
		}
		if !h.busy {
			sh := h.parked
			h.parked = nil
			se.ready(h, sh, at)
		}
	}
	se.log.Info().Ints32("partitions", ps).Int("kept", kept).Msg("the group has dealt out its partitions")
}

// lost parks the partitions that went: in a rebalance most of them come back at once. Another instance may commit for them
// meanwhile, which the committed offsets then tell.
func (se *session) lost(_ context.Context, partitions map[string][]int32) {
	for _, ps := range partitions {
		for _, p := range ps {
			if h := se.own.held[p]; h != nil {
				h.away = true
				if sh := se.shards[p]; sh != nil {
					h.parked = sh
				}
			}
			delete(se.shards, p)
			se.ledgers.forget(p)
		}
	}
}

// release lets a partition go for good: its rebuild ends, its state is written to its segments.
func (se *session) release(h *holding) {
	if h.gone {
		return
	}
	h.gone = true
	se.ledgers.forget(h.partition)
	if h.cancel != nil {
		h.cancel()
	}
	if h.busy {
		return // admit looks after what the job leaves
	}
	sh := h.parked
	h.parked = nil
	if sh == nil || sh.keeper == nil {
		delete(se.own.held, h.partition)
		return
	}
	h.busy = true
	se.own.jobs.Go(func() {
		sh.leave(true)
		se.finish(readied{h: h})
	})
}

// ready starts the job that makes a partition ready. kept is its state in this instance, nil if there is none.
func (se *session) ready(h *holding, kept *Shard, at *places) {
	h.busy = true
	h.ctx, h.cancel = context.WithCancel(se.own.ctx)
	ctx, cancel, p, share, of := h.ctx, h.cancel, h.partition, se.own.share, se.partitions()
	se.own.jobs.Go(func() {
		defer cancel()
		sh, err := se.prepare(ctx, p, of, kept, at)
		se.finish(readied{h, share, sh, err})
	})
}

func (se *session) finish(r readied) {
	se.own.finish(r)
	se.tx.Wake()
}

// partitions is how many this instance has, ready or not: the memory is shared among them.
func (se *session) partitions() (n int) {
	for _, h := range se.own.held {
		if !h.gone {
			n++
		}
	}
	return n
}

// prepare returns the state that the committed offsets stand for: the one that is there, if it is that, or else a new one. With
// an error the state that is returned is still to be let go.
func (se *session) prepare(ctx context.Context, p int32, of int, kept *Shard, at *places) (*Shard, error) {
	select {
	case <-at.done:
	case <-ctx.Done():
		return kept, ctx.Err()
	}
	if at.err != nil {
		return kept, at.err
	}
	plan, err := planRebuild(se.cfg, p, at.committed, at.start)
	if err != nil {
		return kept, err
	}
	if kept != nil {
		if kept.stands(plan) {
			return kept, nil
		}
		kept.leave(false) // somebody else has gone on
	}
	select {
	case se.own.slots <- struct{}{}:
		defer func() { <-se.own.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return se.rebuild(ctx, p, of, plan)
}

// stands says whether the state is the one that a plan would bring back.
func (s *Shard) stands(p plan) bool {
	if p.fresh {
		return s.sequence == 0 && s.committed == p.next
	}
	return s.sequence == p.meta.Sequence && s.committed == p.next && s.hash == p.meta.Hash
}

// admit takes over what the jobs have made ready.
func (se *session) admit() error {
	for _, r := range se.own.finished() {
		h := r.h
		h.busy = false
		switch {
		case h.gone:
			h.parked, h.gone = r.shard, false
			se.release(h)
		case h.away:
			h.parked = r.shard // to be held against the committed offsets when it is back
		case r.share != se.own.share && (r.err == nil || errors.Is(r.err, context.Canceled)):
			// It went and came back meanwhile, or the share was dealt out anew: others may have committed.
			se.ready(h, r.shard, se.lookUp())
		case r.err != nil:
			if r.shard != nil {
				h.parked = r.shard
			}
			return r.err
		default:
			se.join(h, r.shard)
		}
	}
	return nil
}

// join lets the client fetch a partition that is ready.
func (se *session) join(h *holding, sh *Shard) {
	p := h.partition
	se.shards[p] = sh
	for in, topic := range inputTopic {
		if !sh.paused[in] {
			se.tx.Resume(topic, p)
		}
	}
	se.ledgers.publish(sh)
	for _, sh := range se.shards { // shares of the memory change with the number of partitions
		if sh.keeper != nil {
			sh.keeper.Limit(int(se.cfg.MemoryLimit / int64(se.partitions())))
		}
	}
}

// reportSlow says which partitions wait long for their state: after slowRebuild, and every minute from then on.
func (se *session) reportSlow(now time.Time) {
	var slow []int32
	oldest := now
	for p, h := range se.own.held {
		if h.busy && !h.gone && now.Sub(h.since) >= slowRebuild {
			slow = append(slow, p)
			if h.since.Before(oldest) {
				oldest = h.since
			}
		}
	}
	if len(slow) == 0 || now.Sub(se.own.told) < time.Minute {
		return
	}
	se.own.told = now
	slices.Sort(slow)
	se.log.Warn().Ints32("partitions", slow).Dur("since", now.Sub(oldest)).
		Msg("partitions are assigned and not joined yet: their state is being rebuilt, and their labels wait")
}

// disband waits for the jobs, which were cancelled, and lets everything go. orderly: no transaction is open, so the states are
// those of the last commit.
func (se *session) disband(orderly bool) {
	se.own.jobs.Wait()
	for _, r := range se.own.finished() {
		if r.shard != nil {
			r.shard.leave(orderly)
		}
	}
	for _, h := range se.own.held {
		if h.parked != nil {
			h.parked.leave(orderly)
		}
	}
	for _, sh := range se.shards {
		sh.leave(orderly)
	}
}
