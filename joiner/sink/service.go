package sink

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"ctrloop/internal/stream"
	"ctrloop/internal/telemetry"
	"ctrloop/internal/warehouse"
	"ctrloop/schemas"
)

// Warehouse is where rows go; *warehouse.DB is one.
type Warehouse interface {
	InsertLabelBlock(ctx context.Context, token string, b *warehouse.LabelBlock, n int) error
	InsertAudit(ctx context.Context, rows []warehouse.AuditRow) error
	InsertLate(ctx context.Context, rows []warehouse.LateRow) error
	InsertDeadLetters(ctx context.Context, rows []warehouse.DeadLetterRow) error
	InsertCreatives(ctx context.Context, rows []schemas.Creative) error
	InsertPairs(ctx context.Context, rows []schemas.Pair) error
	InsertControl(ctx context.Context, rows []warehouse.ControlRow) error
	Audit(ctx context.Context, since time.Time) ([]warehouse.Mismatch, error)
	AuditBlocks(ctx context.Context, since time.Time) ([]warehouse.Cell, error)
	AuditCells(ctx context.Context, cells []warehouse.Cell) ([]warehouse.Mismatch, error)
	InsertProgress(ctx context.Context, topicID string, rows []warehouse.Progress, now time.Time) error
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
	connect func(stream.ConsumerConfig) (Source, error) // a member of the group
	backoff time.Duration
	giveUp  time.Duration
	behind  *stream.LagMeter
	way     *Way
	join    Join
	leader  Leader
	// auditRows is auditRows, but in tests.
	auditRows time.Duration
	work      map[string]*telemetry.Work // by part; none: nobody listens
	lostPause time.Duration
	// refilled: the warehouse may have forgotten the tokens of blocks that it has.
	refilled bool
}

// New returns a sink that has not connected yet.
func New(cfg Config, db Warehouse, log zerolog.Logger, reg prometheus.Registerer) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("sink configuration: %w", err)
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, err
	}
	s := &Service{
		cfg:     cfg,
		db:      db,
		log:     log,
		metrics: m,
		backoff: minBackoff,
		giveUp:  giveUp,
		behind:  stream.NewLagMeter(cfg.Kafka),
		way:     NewWay(cfg),
		leader:  always{},

		auditRows: auditRows,
		lostPause: lostPause,
	}
	s.connect = s.member
	return s, nil
}

// Run works until ctx is done and returns nil then. Whatever fails is tried again from the last commit;
// what was read and not inserted is read again by the next run.
func (s *Service) Run(ctx context.Context) error {
	var g errgroup.Group
	for name, session := range map[string]func(context.Context) (bool, error){
		partLabels: s.labels, partMirror: s.mirror, partControl: s.control, partAudit: s.audit, partProgress: s.progress,
	} {
		g.Go(func() error { s.supervise(ctx, name, session); return nil })
	}
	return g.Wait()
}

// supervise runs sessions one after the other. A session says whether it brought anything into the warehouse.
func (s *Service) supervise(ctx context.Context, name string, session func(context.Context) (progress bool, err error)) {
	wait := s.backoff
	for {
		s.work[name].Begin()
		progress, err := session(ctx)
		if ctx.Err() != nil {
			return
		}
		if progress {
			wait = s.backoff
		}
		s.metrics.sessions.Inc()
		pause, level := wait, zerolog.WarnLevel
		switch {
		case stream.FateOf(err) == stream.Lost:
			err = fmt.Errorf("%w; %s", err, s.lostAdvice())
			s.metrics.lost.Inc()
			s.work[name].Stuck(err)
			pause, level = s.lostPause, zerolog.ErrorLevel
		case warehouse.Permanent(err):
			level = zerolog.ErrorLevel // will not heal by itself
		}
		s.work[name].Failed(err)
		s.log.WithLevel(level).Err(stream.Explain(err)).Str("part", name).Dur("retry_in", pause).
			Msg("sink session ended, starting again at the last commit")
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		wait = min(wait*2, maxBackoff)
	}
}

// lostAdvice is what a person can do where the broker has deleted records that the sink has not read.
func (s *Service) lostAdvice() string {
	return fmt.Sprintf("the warehouse lacks them for good, and the audit will show it. Make kafka.retention longer than the longest outage. "+
		"To go on behind the gap, stop all sinks and set the groups %s and %s to the earliest offset "+
		"(kafka-consumer-groups --reset-offsets --to-earliest): what is there already replaces itself", s.cfg.Group, s.mirrorGroup())
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
