package sink

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
	"ctrloop/schemas"
)

// Warehouse is where rows go; *warehouse.DB is one.
type Warehouse interface {
	InsertLabelBlock(ctx context.Context, token string, b *warehouse.LabelBlock, n int) error
	InsertAudit(ctx context.Context, rows []warehouse.AuditRow) error
	InsertLate(ctx context.Context, rows []warehouse.LateRow) error
	InsertCreatives(ctx context.Context, rows []schemas.Creative) error
	InsertPairs(ctx context.Context, rows []schemas.Pair) error
	InsertControl(ctx context.Context, rows []warehouse.ControlRow) error
	Audit(ctx context.Context, since time.Time) ([]warehouse.Mismatch, error)
	NewestAudited(ctx context.Context) (time.Time, error)
	Retire(ctx context.Context, keep time.Duration) ([]time.Time, error)
	LabelKeys(ctx context.Context, partition int32, from, to int64) (map[warehouse.LabelKey]struct{}, error)
	Touch(ctx context.Context, days ...time.Time) error
}

// Pauses between sessions that fail, doubling until one has made progress.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 10 * time.Second
)

// giveUp is how long one block is tried within a session: below the 20 s that the group waits for a member.
const giveUp = 10 * time.Second

// Service is one instance of the sink.
type Service struct {
	cfg     Config
	db      Warehouse
	log     zerolog.Logger
	metrics *metrics
	// fault is asked at every step of a block; tests return errors to break off there.
	fault   func(step) error
	backoff time.Duration
	giveUp  time.Duration
	behind  *stream.LagMeter
	// refilled: the warehouse may have forgotten the tokens of blocks that it has.
	refilled bool
}

// step names a place where the process may die.
type step string

const (
	stepIntent    step = "intent"    // pending=e committed, nothing inserted
	stepInserted  step = "inserted"  // inserted, e not committed
	stepCommitted step = "committed" // e committed
)

// New returns a sink that has not connected yet.
func New(cfg Config, db Warehouse, log zerolog.Logger, reg prometheus.Registerer) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("sink configuration: %w", err)
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, err
	}
	return &Service{
		cfg:     cfg,
		db:      db,
		log:     log,
		metrics: m,
		fault:   func(step) error { return nil },
		backoff: minBackoff,
		giveUp:  giveUp,
		behind:  stream.NewLagMeter(cfg.Kafka),
	}, nil
}

// Run works until ctx is done and returns nil then. Whatever fails is tried again from the last commit, but for what
// stream.FateOf gives up; what was read and not inserted is read again by the next run.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for name, session := range map[string]func(context.Context) (bool, error){"labels": s.labels, "mirror": s.mirror, "control": s.control, "audit": s.audit} {
		g.Go(func() error { return s.keep(ctx, name, session) })
	}
	return g.Wait()
}

// wayOut of records that are gone before they were in the warehouse.
const wayOut = "what is missing is in no table and no retry finds it: raise the topic's retention above the longest outage of the " +
	"warehouse, stop the sink, and set its group to the start of that partition to go on without them"

// keep runs sessions one after the other. A session says whether it brought anything into the warehouse.
func (s *Service) keep(ctx context.Context, name string, session func(context.Context) (progress bool, err error)) error {
	wait := s.backoff
	for {
		progress, err := session(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case stream.FateOf(err) == stream.Refused:
			return fmt.Errorf("sink of the %s: %w", name, err)
		case stream.FateOf(err) == stream.Lost:
			return stream.Final(fmt.Errorf("sink of the %s: %w", name, err), wayOut)
		}
		if progress {
			wait = s.backoff
		}
		s.metrics.sessions.Inc()
		level := zerolog.WarnLevel
		if warehouse.Permanent(err) {
			level = zerolog.ErrorLevel // will not heal by itself
		}
		s.log.WithLevel(level).Err(err).Str("part", name).Dur("retry_in", wait).Msg("sink session ended, starting again at the last commit")
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = min(wait*2, maxBackoff)
	}
}

func (s *Service) mirrorGroup() string { return s.cfg.mirrorGroup() }

// Lag is how many offsets of labels.v1 and of the mirrored topics (control.v1 excepted) are committed in the
// broker and not in the warehouse, over all instances. 0: everything is there. Ends of transactions, which
// take an offset and carry nothing, do not count when nothing follows them.
func (s *Service) Lag(ctx context.Context) (int64, error) {
	labels, err := s.behind.Lag(ctx, s.cfg.Group, schemas.TopicLabels)
	if err != nil {
		return 0, err
	}
	mirror, err := s.behind.Lag(ctx, s.mirrorGroup(), mirrorTopics...)
	return labels + mirror, err
}
