package stage

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"ctrloop/internal/stream"
	"ctrloop/schemas"
)

const (
	// endTimeout bounds the end of a transaction whose caller has gone; the broker's own limit is 20 s.
	endTimeout = 15 * time.Second
	// leaveTimeout bounds the good-bye to the group, after which its other members find out by themselves.
	leaveTimeout = 5 * time.Second
	// Pauses between sessions that fail without having committed anything: from minBackoff, doubling, up to maxDoubling times that.
	minBackoff  = 100 * time.Millisecond
	maxDoubling = 100
	// maxAborts in a row end the session: more is not going to heal by trying at full speed.
	maxAborts = 10
	// pollWait is how long a poll waits for labels.
	pollWait = 2 * time.Second
)

// Service is one instance of the stage.
type Service struct {
	cfg     Config
	log     zerolog.Logger
	metrics *metrics
	ledgers ledgers
	broker  broker
	backoff time.Duration // the first pause after a failed session
	report  func(error)
}

// New returns a stage that has not connected yet. report hears of how sessions end, and nil when one works.
func New(cfg Config, log zerolog.Logger, reg prometheus.Registerer, report func(error)) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("pairer.evidence configuration: %w", err)
	}
	s := &Service{cfg: cfg, log: log, broker: kafka{cfg.Kafka}, backoff: minBackoff, report: report}
	var err error
	s.metrics, err = newMetrics(reg, &s.ledgers)
	return s, err
}

// Run counts until ctx is done. It returns nil then, and otherwise an error that wraps ErrRefused, or one that stream.FateOf
// gives up; whatever else fails is tried again from the last commit.
func (s *Service) Run(ctx context.Context) error {
	backoff := s.backoff
	for {
		progress, err := s.session(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrRefused), stream.FateOf(err) == stream.Refused:
			return fmt.Errorf("evidence: %w", err)
		case stream.FateOf(err) == stream.Lost:
			return stream.Final(fmt.Errorf("evidence: %w: %w", ErrRefused, err), freshStart)
		}
		if progress {
			backoff = s.backoff
		}
		s.metrics.sessions.Inc()
		s.report(stream.Explain(err))
		// At most one line per backoff, so no flood.
		s.log.Error().Err(stream.Explain(err)).Dur("retry_in", backoff).Msg("session of the evidence ended; rebuilding from the last commit")
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
	shards map[int32]*shard // of the partitions that are ready

	open     bool // a transaction is
	progress bool // something was committed
	aborts   int  // since the last commit
}

func (s *Service) session(ctx context.Context) (progress bool, err error) {
	if err := stream.CheckBroker(ctx, s.cfg.Kafka); err != nil {
		return false, err
	}
	if err := checkTopics(ctx, s.cfg.Kafka); err != nil {
		return false, err
	}
	se := &session{Service: s, shards: map[int32]*shard{}, own: newOwnership(ctx, runtime.GOMAXPROCS(0))}
	defer se.own.cancel()
	defer s.ledgers.drop()
	se.tx, err = s.broker.join(stream.TxConfig{
		Group: s.cfg.Group, TransactionalID: s.cfg.TransactionalID, InstanceID: s.cfg.instance(), Topics: []string{schemas.TopicLabels},
		MaxPoll: s.cfg.MaxPoll, RebalanceTimeout: s.cfg.RebalanceTimeout, CoPartitioned: true, Held: true,
		OnAssigned: se.assigned, OnLost: se.lost,
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

func (se *session) end(ctx context.Context) {
	se.own.cancel()
	if ctx.Err() == nil || se.open {
		se.tx.Close() // back in a moment
	} else {
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
		defer cancel()
		if err := se.tx.Leave(within); err != nil {
			se.log.Warn().Err(err).Msg("the evidence's group could not be left: it waits for this instance until its session times out")
		}
	}
	se.own.jobs.Wait()
}

// cycle is one transaction: poll, fold, produce, commit.
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
	se.metrics.transaction.Observe(time.Since(began).Seconds())
	if !backlog(batch) { // under light load, wait for a transaction's worth of labels
		select {
		case <-ctx.Done():
		case <-time.After(se.cfg.CommitInterval - time.Since(began)):
		}
	}
	return nil
}

// poll waits for labels. Partitions that have become ready meanwhile are taken in.
func (se *session) poll(ctx context.Context) (stream.Batch, error) {
	for {
		if err := se.admit(); err != nil {
			return stream.Batch{}, err
		}
		batch, err := se.tx.Poll(ctx, pollWait)
		switch {
		case err != nil:
			return batch, fmt.Errorf("poll: %w", err)
		case len(batch.Partitions) > 0:
			return batch, nil
		}
		if len(se.shards) == se.own.partitions() { // nothing to count is no trouble
			se.report(nil)
		}
		se.reportSlow(time.Now())
	}
}

// backlog says whether more was waiting than this batch brought. A few records do not count: the end markers of the joiner's
// transactions look like labels that are still to come.
func backlog(b stream.Batch) bool {
	const few = 100
	for _, p := range b.Partitions {
		if n := len(p.Records); n > 0 && p.HighWatermark-p.Records[n-1].Offset > few {
			return true
		}
	}
	return false
}

// process folds the batch, partitions side by side.
func (se *session) process(batch stream.Batch) error {
	parts := map[int32][]stream.PartitionBatch{}
	for _, b := range batch.Partitions {
		parts[b.Partition] = append(parts[b.Partition], b)
	}
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for p, batches := range parts {
		sh := se.shards[p]
		if sh == nil {
			return fmt.Errorf("labels of partition %d, which was not assigned: %w", p, errState)
		}
		g.Go(func() error { return sh.process(batches, se.tx.Produce) })
	}
	return g.Wait()
}

// commit ends the transaction. It goes on when ctx is done: a transaction that is complete is worth its second.
func (se *session) commit(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	meta := map[int32]string{}
	for p, sh := range se.shards {
		if text, ok := sh.propose(); ok {
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
	se.report(nil)
	for p := range meta {
		sh := se.shards[p]
		se.metrics.records.Add(float64(len(sh.records)))
		sh.commit()
		se.ledgers.publish(sh)
	}
	return nil
}

// aborted undoes the transaction. The client reports an abort also when it does not know how the broker decided, and has then
// rewound its offsets for nothing: only the committed offsets say whether the state before or after the transaction is right.
func (se *session) aborted(ctx context.Context) error {
	se.metrics.aborts.Inc()
	if se.aborts++; se.aborts == maxAborts {
		return fmt.Errorf("%d transactions in a row were aborted: is the broker refusing records (see its log), or the group rebalancing "+
			"all the time?", maxAborts)
	}
	at, err := stream.CommittedOffsets(ctx, se.cfg.Kafka, se.cfg.Group, schemas.TopicLabels)
	if err != nil {
		return fmt.Errorf("after an abort: %w", err)
	}
	for p, sh := range se.shards {
		if err := sh.rollback(); err != nil {
			return err
		}
		tp := stream.TopicPartition{Topic: schemas.TopicLabels, Partition: p}
		if c, ok := at[tp]; ok && c.Offset != sh.meta.Next {
			return fmt.Errorf("after an abort %s is committed at %d, the evidence stands at %d: %w", tp, c.Offset, sh.meta.Next, errState)
		}
	}
	return nil
}
