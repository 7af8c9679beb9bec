package joiner

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"ctrloop/internal/stream"
	"ctrloop/internal/telemetry"
	"ctrloop/joiner/segment"
	"ctrloop/joiner/window"
)

// endTimeout bounds the end of a transaction whose caller has gone; the broker's own limit is 20 s.
const endTimeout = 15 * time.Second

// Pauses between sessions that fail without having committed anything: from minBackoff, doubling, up to
// maxDoubling times that.
const (
	minBackoff  = 100 * time.Millisecond
	maxDoubling = 100
)

// maxAborts in a row end the session. A rebalance aborts one transaction, a broker in trouble a few; more is not
// going to heal by trying at full speed.
const maxAborts = 10

// fetchPartition bounds what one fetch brings of one partition, in bytes: some 9,000 impressions. The client hands over
// fetches partition by partition; at its usual 2 MiB, one transaction of a backlog held two partitions out of four, one
// of them three times the other, so that a core stood idle, and the clicks came in a transaction of their own.
const fetchPartition = 512 << 10

// Service is one instance of the joiner.
type Service struct {
	cfg     Config
	log     zerolog.Logger
	metrics *metrics
	kept    *segment.Metrics
	guard   *guard
	ledgers ledgers
	seed    uint64
	broker  broker
	backoff time.Duration // the first pause after a failed session
	work    *telemetry.Work
}

// Reports has the service say whether it can do its work: the join, and telling the circuit breaker's state. Call it before Run.
func (s *Service) Reports(works telemetry.Works) {
	s.work, s.guard.work = works.Of("join"), works.Of("circuit breaker")
}

// New returns a joiner that has not connected yet.
func New(cfg Config, log zerolog.Logger, reg prometheus.Registerer) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("joiner configuration: %w", err)
	}
	if cfg.MemoryLimit > 0 && !cfg.Segments.on() {
		return nil, fmt.Errorf(
			"joiner configuration: memory_limit: %d, but segments.dir is empty: cold windows have nowhere to go",
			cfg.MemoryLimit,
		)
	}
	s := &Service{
		cfg:     cfg,
		log:     log,
		seed:    rand.Uint64(),
		guard:   newGuard(cfg, log),
		broker:  kafka{cfg.Kafka},
		backoff: minBackoff,
	}
	var err error
	if s.metrics, err = newMetrics(reg, &s.ledgers); err != nil {
		return nil, err
	}
	if s.kept, err = segment.NewMetrics(reg); err != nil {
		return nil, err
	}
	if err := reg.Register(s.guard.tripped); err != nil {
		return nil, fmt.Errorf("joiner metrics: %w", err)
	}
	return s, nil
}

// Run joins until ctx is done. It returns nil then, and otherwise an error that wraps ErrRefused, or one that stream.FateOf
// gives up; whatever else fails is tried again from the last commit.
func (s *Service) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	told := make(chan struct{})
	go func() {
		defer close(told)
		s.guard.run(ctx)
	}()
	defer func() {
		cancel()
		<-told
	}()
	backoff := s.backoff
	for {
		s.work.Begin()
		progress, err := s.session(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrRefused), stream.FateOf(err) == stream.Refused:
			return fmt.Errorf("joiner: %w", err)
		case stream.FateOf(err) == stream.Lost:
			return stream.Final(fmt.Errorf("joiner: %w: %w", ErrRefused, err), freshStart)
		}
		if progress {
			backoff = s.backoff
		}
		s.metrics.sessions.Inc()
		s.work.Failed(err)
		// At most one line per backoff, so no flood.
		s.log.Error().Err(stream.Explain(err)).Dur("retry_in", backoff).Msg("session ended; rebuilding from the last commit")
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxDoubling*s.backoff)
	}
}

// session is the life of one transactional client: from joining the group to the first error.
type session struct {
	*Service
	tx     transactions
	own    *ownership
	shards map[int32]*Shard // of the partitions that are ready

	open     bool  // a transaction is
	progress bool  // something was committed
	aborts   int   // since the last commit
	failed   error // of a rebalance callback, which cannot return one
	topicIDs map[string]string
}

// leaveTimeout bounds the good-bye to the group, after which its other members find out by themselves.
const leaveTimeout = 5 * time.Second

func (s *Service) session(ctx context.Context) (progress bool, err error) {
	if err := stream.CheckBroker(ctx, s.cfg.Kafka); err != nil {
		return false, err
	}
	if err := checkTopics(ctx, s.cfg.Kafka); err != nil {
		return false, err
	}
	se := &session{Service: s, shards: map[int32]*Shard{}}
	if s.cfg.Segments.on() {
		if se.topicIDs, err = stream.TopicIDs(ctx, s.cfg.Kafka, inputTopic[:]...); err != nil {
			return false, err
		}
	}
	se.own = newOwnership(ctx, s.workers())
	defer se.own.cancel()
	defer s.ledgers.drop()
	se.tx, err = s.broker.join(stream.TxConfig{
		Group: s.cfg.Group, TransactionalID: s.cfg.TransactionalID, InstanceID: s.cfg.instance(),
		Topics: inputTopic[:], MaxPoll: s.cfg.MaxPoll, FetchMaxPartitionBytes: fetchPartition,
		RebalanceTimeout: s.cfg.RebalanceTimeout, CoPartitioned: true, Held: true, OnAssigned: se.assigned, OnLost: se.lost,
	})
	if err != nil {
		return false, err
	}
	for err == nil {
		err = se.cycle(ctx)
	}
	se.end(ctx)
	return se.progress, err
}

// end lets go of the group first, so that others take over while the segments are being written.
func (se *session) end(ctx context.Context) {
	se.own.cancel()
	orderly := ctx.Err() != nil && !se.open
	if !orderly {
		se.tx.Close() // back in a moment
	} else {
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
		defer cancel()
		if err := se.tx.Leave(within); err != nil {
			se.log.Warn().Err(err).Msg("the group could not be left: it waits for this instance until its session times out")
		}
	}
	se.disband(orderly)
}

// cycle is one transaction: poll, join, produce, commit.
func (se *session) cycle(ctx context.Context) error {
	batch, err := se.poll(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	se.open = true
	if err := se.tx.Begin(); err != nil {
		return err
	}
	if err := se.process(batch); err != nil {
		return err // the transaction stays open: the next session's client fences it
	}
	if err := se.commit(ctx); err != nil {
		return err
	}
	se.open = false
	se.align()
	se.guard.judge(se.shards)
	for _, sh := range se.shards {
		se.ledgers.publish(sh)
	}
	se.metrics.transaction.Observe(time.Since(began).Seconds())
	// Under light load, wait for a transaction's worth of records; a backlog is not held up.
	if !backlog(batch) && !se.behind() {
		select {
		case <-ctx.Done():
		case <-time.After(se.cfg.CommitInterval - time.Since(began)):
		}
	}
	return nil
}

// firstLook is how long a watermark that is on its way waits for records before it does without; later looks take twice
// as long each, up to lastLook.
const (
	firstLook = 10 * time.Millisecond
	lastLook  = 2 * time.Second
)

// poll waits for records, or for the partitions whose watermark is on its way: they go on without records. Partitions that
// have become ready meanwhile are taken in.
func (se *session) poll(ctx context.Context) (stream.Batch, error) {
	for look := firstLook; ; {
		if err := se.admit(); err != nil {
			return stream.Batch{}, err
		}
		wait := lastLook
		if se.behind() {
			wait, look = look, min(2*look, lastLook)
		}
		batch, err := se.tx.Poll(ctx, wait)
		switch {
		case err != nil:
			return batch, fmt.Errorf("poll: %w", err)
		case se.failed != nil:
			return batch, se.failed
		case len(batch.Partitions) > 0:
			return batch, nil
		}
		se.work.Alive()
		se.nudge()
		se.reportSlow(time.Now())
	}
}

// behind says whether a watermark is on its way.
func (se *session) behind() bool {
	for _, sh := range se.shards {
		if sh.w.Behind() {
			return true
		}
	}
	return false
}

// nudge asks for the partitions whose watermark is on its way.
func (se *session) nudge() {
	next := map[stream.TopicPartition]int64{}
	for p, sh := range se.shards {
		in, ok := sh.needed()
		if !ok || !sh.w.Behind() {
			continue
		}
		if sh.paused[in] { // what comes of it meanwhile is less than what closes
			se.tx.Resume(inputTopic[in], p)
			sh.paused[in] = false
		}
		next[stream.TopicPartition{Topic: inputTopic[in], Partition: p}] = sh.next[in]
	}
	se.tx.Nudge(next)
}

// backlog says whether more was waiting than this batch brought. A few records do not count: the end markers
// of transactional producers look like records that are still to come.
func backlog(b stream.Batch) bool {
	const few = 100
	for _, p := range b.Partitions {
		if n := len(p.Records); n > 0 && p.HighWatermark-p.Records[n-1].Offset > few {
			return true
		}
	}
	return false
}

// process joins the batch, partitions side by side.
func (se *session) process(batch stream.Batch) error {
	parts := map[int32][]stream.PartitionBatch{}
	for _, b := range batch.Partitions {
		parts[b.Partition] = append(parts[b.Partition], b)
	}
	closing := newAllowance(se.cfg.MaxPoll, len(parts))
	var g errgroup.Group
	g.SetLimit(se.workers())
	for p, batches := range parts {
		sh := se.shards[p]
		if sh == nil {
			return fmt.Errorf("records of partition %d, which was not assigned: %w", p, errState)
		}
		g.Go(func() error { return sh.Process(batches, closing, se.tx.Produce) })
	}
	return g.Wait()
}

func (s *Service) workers() int {
	if s.cfg.Workers > 0 {
		return s.cfg.Workers
	}
	return runtime.GOMAXPROCS(0)
}

// commit ends the transaction. It goes on when ctx is done: a transaction that is complete is worth its second.
func (se *session) commit(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	meta := map[int32]string{}
	for p, sh := range se.shards {
		if text, ok := sh.Propose(se.cfg); ok {
			meta[p] = text
		}
	}
	committed, err := se.tx.Commit(ctx, func(_ string, p int32) (string, bool) {
		text, ok := meta[p]
		return text, ok
	})
	if err != nil {
		return err
	}
	if !committed {
		return se.aborted(ctx)
	}
	se.progress, se.aborts = true, 0
	se.work.Worked()
	for p, sh := range se.shards {
		if _, ok := meta[p]; ok {
			se.metrics.add(p, &sh.stats)
			if sh.w.Behind() {
				se.metrics.slices.Inc()
			}
		}
		sh.Commit()
	}
	return nil
}

// aborted undoes the transaction in every shard. The client reports an abort also when it does not know
// how the broker decided (an unknown error in answer to EndTxn), and has then rewound its offsets for nothing:
// only the broker's committed offsets say whether the state before or after the transaction is the right one.
func (se *session) aborted(ctx context.Context) error {
	se.metrics.aborts.Inc()
	if se.aborts++; se.aborts == maxAborts {
		return fmt.Errorf(
			"%d transactions in a row were aborted: is the broker refusing records (see its log), or the group rebalancing all the time?",
			maxAborts,
		)
	}
	at, err := stream.CommittedOffsets(ctx, se.cfg.Kafka, se.cfg.Group, inputTopic[:]...)
	if err != nil {
		return fmt.Errorf("after an abort: %w", err)
	}
	for _, sh := range se.shards {
		if err := sh.rollback(); err != nil {
			return err
		}
		for in, topic := range inputTopic {
			tp := stream.TopicPartition{Topic: topic, Partition: sh.partition}
			if c, ok := at[tp]; ok && c.Offset != sh.committed[in] {
				return fmt.Errorf("after an abort %s is committed at %d, the state is of %d: %w", tp, c.Offset, sh.committed[in], errState)
			}
		}
	}
	return nil
}

// align pauses inputs that run ahead and resumes those whose partner has caught up.
func (se *session) align() {
	bound := se.cfg.MaxLead.Milliseconds()
	for p, sh := range se.shards {
		for in, topic := range inputTopic {
			lead := sh.lead(window.Input(in))
			switch {
			case lead > bound && !sh.paused[in]:
				se.tx.Pause(topic, p)
				sh.paused[in] = true
				se.metrics.pauses.WithLabelValues(topic).Inc()
			case lead <= bound/2 && sh.paused[in]: // half: a pause drops what was fetched, so not at every wobble
				se.tx.Resume(topic, p)
				sh.paused[in] = false
			}
		}
	}
}

// rebuild makes the state of a partition, one of so many of this instance.
func (se *session) rebuild(ctx context.Context, p int32, of int, plan plan) (*Shard, error) {
	began := time.Now()
	sh, err := se.restore(ctx, p, of, plan)
	if err != nil {
		return nil, err
	}
	sh.of = plan.of
	se.metrics.rebuild.Observe(time.Since(began).Seconds())
	l := sh.w.Ledger()
	se.log.Info().Int32("partition", p).Bool("fresh", plan.fresh).Int64("impressions_at", plan.next[0]).Int64("clicks_at", plan.next[1]).
		Uint64("open", l.Open).Uint64("pending", l.Pending).Dur("took", time.Since(began)).Msg("partition taken")
	return sh, nil
}
