package stage

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/schemas"
)

// slowRebuild is after how long a partition that waits for its state is reported.
const slowRebuild = 15 * time.Second

// holding is a partition that the group has given to this instance. Its state is made ready beside the poll loop, by one job at a
// time; until then the client does not fetch it. All fields belong to the poll loop.
type holding struct {
	partition int32
	cancel    context.CancelFunc // of the running job
	busy      bool               // a job is running
	gone      bool               // the partition was taken away, and the job that runs must end first
	away      bool               // given back to the group for the time of a rebalance: it may come back
	parked    *shard             // ready, but away
	since     time.Time
}

// readied is what a job ends with.
type readied struct {
	h     *holding
	share int // the assignment whose committed offsets the state was held against
	shard *shard
	err   error
}

// ownership follows the group: which partitions this instance has, and which of them are ready.
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

func (o *ownership) finished() []readied {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.done
	o.done = nil
	return out
}

// partitions is how many this instance has, ready or not: the memory is shared among them.
func (o *ownership) partitions() (n int) {
	for _, h := range o.held {
		if !h.gone {
			n++
		}
	}
	return n
}

// assigned hears of the share that the group has dealt out anew. What this instance had before and has again goes on with the
// state that it has, once that was held against the committed offsets; what is new is rebuilt; the rest is let go.
func (se *session) assigned(_ context.Context, partitions map[string][]int32) {
	ps := slices.Sorted(slices.Values(partitions[schemas.TopicLabels]))
	se.own.share++
	for p, h := range se.own.held {
		if !slices.Contains(ps, p) {
			se.release(h)
		}
	}
	at := se.lookUp()
	for _, p := range ps {
		h := se.own.held[p]
		if h == nil {
			h = &holding{partition: p}
			se.own.held[p] = h
		}
		h.gone, h.away, h.since = false, false, time.Now()
		se.ledgers.expect(p)
		if !h.busy {
			sh := h.parked
			h.parked = nil
			se.ready(h, sh, at)
		}
	}
	se.log.Info().Ints32("partitions", ps).Msg("the group has dealt out the partitions of the evidence")
}

// lost parks the partitions that went: in a rebalance most of them come back at once. Another instance may commit for them
// meanwhile, which the committed offsets then tell.
func (se *session) lost(_ context.Context, partitions map[string][]int32) {
	for _, p := range partitions[schemas.TopicLabels] {
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

// release lets a partition go for good.
func (se *session) release(h *holding) {
	h.gone = true
	se.ledgers.forget(h.partition)
	if h.busy {
		h.cancel()
		return // admit looks after what the job leaves
	}
	delete(se.own.held, h.partition)
}

// ready starts the job that makes a partition ready. kept is its state in this instance, nil if there is none.
func (se *session) ready(h *holding, kept *shard, at *places) {
	h.busy = true
	ctx, cancel := context.WithCancel(se.own.ctx)
	h.cancel = cancel
	p, share, of := h.partition, se.own.share, se.own.partitions()
	se.own.jobs.Go(func() {
		defer cancel()
		sh, err := se.prepare(ctx, p, of, kept, at)
		se.own.mu.Lock()
		se.own.done = append(se.own.done, readied{h, share, sh, err})
		se.own.mu.Unlock()
		se.tx.Wake()
	})
}

// prepare returns the state that the committed offset stands for: the one that is there, if it is that, or else a new one.
func (se *session) prepare(ctx context.Context, p int32, of int, kept *shard, at *places) (*shard, error) {
	select {
	case <-at.done:
	case <-ctx.Done():
		return kept, ctx.Err()
	}
	if at.err != nil {
		return kept, at.err
	}
	plan, err := planRebuild(se.cfg, p, at)
	if err != nil {
		return nil, err
	}
	if kept != nil && kept.meta == plan.meta {
		return kept, nil
	}
	select {
	case se.own.slots <- struct{}{}:
		defer func() { <-se.own.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return se.rebuild(ctx, p, of, plan)
}

// admit takes over what the jobs have made ready.
func (se *session) admit() error {
	for _, r := range se.own.finished() {
		h := r.h
		h.busy = false
		switch {
		case h.gone:
			delete(se.own.held, h.partition)
		case h.away:
			h.parked = r.shard // to be held against the committed offsets when it is back
		case r.share != se.own.share && (r.err == nil || errors.Is(r.err, context.Canceled)):
			// It went and came back meanwhile, or the share was dealt out anew: others may have committed.
			se.ready(h, r.shard, se.lookUp())
		case r.err != nil:
			return r.err
		default:
			se.join(r.shard)
		}
	}
	return nil
}

// join lets the client fetch a partition that is ready.
func (se *session) join(sh *shard) {
	se.shards[sh.partition] = sh
	se.tx.Resume(schemas.TopicLabels, sh.partition)
	se.ledgers.publish(sh)
	for _, sh := range se.shards { // shares of the memory change with the number of partitions
		sh.fold.Limit(se.cfg.fold(se.own.partitions()).MaxBytes)
	}
}

// reportSlow says which partitions wait long for their state: after slowRebuild, and every minute from then on.
func (se *session) reportSlow(now time.Time) {
	var slow []int32
	for p, h := range se.own.held {
		if h.busy && !h.gone && now.Sub(h.since) >= slowRebuild {
			slow = append(slow, p)
		}
	}
	if len(slow) == 0 || now.Sub(se.own.told) < time.Minute {
		return
	}
	se.own.told = now
	slices.Sort(slow)
	se.log.Warn().Ints32("partitions", slow).
		Msg("partitions are assigned and not counted yet: their evidence is being read, and their labels wait")
}

var _ transactions = (*stream.Tx)(nil)
