package sink

import (
	"context"
	"time"

	"ctrloop/internal/warehouse"
)

// auditSpan is how much of the newest impression time is audited again and again: the longest join window is a
// day, and a correction may come a day later. `ctrloop audit` asks about all time.
const auditSpan = 48 * time.Hour

// retireInterval is the pace at which days that are too old are looked for.
const retireInterval = time.Hour

// maxAlarms bounds the log lines of one look.
const maxAlarms = 5

// audit holds the warehouse against audit.v1 every cfg.AuditInterval. A difference that has not moved between
// two looks is no label on its way: it is missing, or there twice, and the alarm is raised.
func (s *Service) audit(ctx context.Context) (progress bool, err error) {
	before := map[warehouse.Mismatch]bool{}
	retire := time.Now() // at the first look, then every retireInterval
	for {
		select {
		case <-ctx.Done():
			return progress, ctx.Err()
		case <-time.After(s.cfg.AuditInterval):
		}
		if before, err = s.look(ctx, before); err != nil {
			return progress, err
		}
		progress = true
		if s.cfg.Retention > 0 && !time.Now().Before(retire) {
			retire = time.Now().Add(retireInterval)
			days, err := s.db.Retire(ctx, s.cfg.Retention)
			for _, d := range days {
				s.log.Info().Str(
					"day",
					d.Format(time.DateOnly),
				).Dur(
					"retention",
					s.cfg.Retention,
				).Msg(
					"a day of labels has reached the end of its retention and is removed",
				)
			}
			if err != nil {
				return progress, err
			}
		}
	}
}

// look is one audit; before and the result are what differed.
func (s *Service) look(ctx context.Context, before map[warehouse.Mismatch]bool) (map[warehouse.Mismatch]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.InsertTimeout)
	defer cancel()
	newest, err := s.db.NewestAudited(ctx)
	if err != nil {
		return before, err
	}
	differ, err := s.db.Audit(ctx, newest.Add(-auditSpan))
	if err != nil {
		return before, err
	}
	now := make(map[warehouse.Mismatch]bool, len(differ))
	settled := 0
	for _, m := range differ {
		now[m] = true
		if !before[m] {
			continue
		}
		if settled++; settled <= maxAlarms {
			s.log.Error().Uint16(
				"partition",
				m.Partition,
			).Time(
				"minute",
				m.Minute,
			).Int64(
				"missing",
				m.Missing(),
			).Uint64(
				"want_labels",
				m.WantLabels,
			).Uint64(
				"labels",
				m.Labels,
			).
				Msg(
					"the warehouse differs from what the joiner wrote; see docs/sink.md, audit",
				)
		}
	}
	s.metrics.mismatched.Set(float64(settled))
	s.metrics.audits.Inc()
	return now, nil
}
