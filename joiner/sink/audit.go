package sink

import (
	"context"
	"maps"
	"slices"
	"time"

	"ctrloop/internal/warehouse"
)

// auditSpan is how much of the newest impression time is audited again and again: the longest join window is a
// day, and a correction may come a day later. `ctrloop audit` asks about all time.
const auditSpan = 48 * time.Hour

// auditRows is the pace at which the rows themselves are audited; in between, the sums of inserted blocks are, which cost
// nothing and cannot see that rows were lost after their insert.
const auditRows = time.Hour

// retireInterval is the pace at which days that are too old are looked for.
const retireInterval = time.Hour

// maxAlarms bounds the log lines of one look.
const maxAlarms = 5

// Leader says whether this process has a role that one process has at a time.
type Leader interface{ IsLeader() bool }

// always leads: for one process alone.
type always struct{}

func (always) IsLeader() bool { return true }

// LeadAudit makes the service audit, retire and record progress only while it leads. Call it before Run.
func (s *Service) LeadAudit(l Leader) { s.leader = l }

// audit holds the warehouse against audit.v1 every cfg.AuditInterval, while this process leads.
func (s *Service) audit(ctx context.Context) (progress bool, err error) {
	var before *look
	retire := time.Now() // at the first look, then every retireInterval
	for {
		select {
		case <-ctx.Done():
			return progress, ctx.Err()
		case <-time.After(s.cfg.AuditInterval):
		}
		if !s.leader.IsLeader() {
			before = nil
			s.metrics.mismatched.Set(0) // whoever leads shows it
			s.work[partAudit].Worked()
			continue
		}
		if before, err = s.look(ctx, before); err != nil {
			return progress, err
		}
		progress = true
		s.work[partAudit].Worked()
		if s.cfg.Retention > 0 && !time.Now().Before(retire) {
			retire = time.Now().Add(retireInterval)
			days, err := s.db.Retire(ctx, s.cfg.Retention)
			for _, d := range days {
				s.log.Info().Str("day", d.Format(time.DateOnly)).Dur("retention", s.cfg.Retention).
					Msg("a day of labels has reached the end of its retention and is removed")
			}
			if err != nil {
				return progress, err
			}
		}
	}
}

// look is what one audit saw.
type look struct {
	mark     Mark      // taken behind it
	rows     time.Time // when the rows were audited last
	differed map[warehouse.Mismatch]bool
}

// look audits once. A difference is an alarm when an earlier look saw the same, number by number, and everything that had
// been written by then has come into the warehouse since. For let part of a transaction of the joiner be here and part of it
// not: then all of it had been written when the first look saw that, so the rest has come, and the numbers have changed.
// While the sink is behind, the earlier look waits: nobody can tell yet.
func (s *Service) look(ctx context.Context, before *look) (*look, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.InsertTimeout)
	defer cancel()
	left := Left{}
	if before != nil && len(before.differed) > 0 {
		var err error
		if left, err = s.way.Left(ctx, before.mark); err != nil {
			return before, err
		}
	}
	now := &look{}
	differ, err := s.differing(ctx, before, now)
	if err != nil {
		return before, err
	}
	if now.mark, err = s.way.Mark(ctx); err != nil {
		return before, err
	}
	now.differed = make(map[warehouse.Mismatch]bool, len(differ))
	settled, waiting := 0, 0
	for _, m := range differ {
		now.differed[m] = true
		switch {
		case before == nil || !before.differed[m]:
		case left.Audit > 0 || left.Labels[int32(m.Partition)] > 0:
			waiting++
		default:
			if settled++; settled <= maxAlarms {
				s.log.Error().Uint16("partition", m.Partition).Time("minute", m.Minute).Int64("missing", m.Missing()).
					Uint64("want_labels", m.WantLabels).Uint64("labels", m.Labels).
					Msg("the warehouse differs from what the joiner wrote; see docs/sink.md, audit")
			}
		}
	}
	s.metrics.mismatched.Set(float64(settled))
	s.metrics.onTheWay.Set(float64(left.Rows()))
	s.metrics.audits.Inc()
	if waiting > 0 { // keep the mark that they wait for
		now.mark = before.mark
	}
	return now, nil
}

// differing returns what differs: of all rows every auditRows, else of the cells in which blocks do, and of those that
// differed before.
func (s *Service) differing(ctx context.Context, before, now *look) ([]warehouse.Mismatch, error) {
	newest, err := s.db.NewestAudited(ctx)
	if err != nil {
		return nil, err
	}
	since := newest.Add(-auditSpan)
	if before == nil || time.Since(before.rows) >= s.auditRows {
		now.rows = time.Now()
		return s.db.Audit(ctx, since)
	}
	now.rows = before.rows
	cells, err := s.db.AuditBlocks(ctx, since)
	if err != nil {
		return nil, err
	}
	for m := range before.differed {
		cells = append(cells, m.Cell())
	}
	return s.db.AuditCells(ctx, cells)
}

// AuditOnce is `ctrloop audit`: the minutes since a time of impressions that differ although nothing that belongs to them is on its
// way any more. Where some is, it waits for it up to patience, and says how much is left then: the differing minutes may be
// explained by that. find is asked for the way only where something differs; it returns nil where no brokers are known, and then
// nobody can tell what is on its way.
func AuditOnce(
	ctx context.Context, db Auditor, find func() (*Way, error), since time.Time, patience time.Duration,
) (differ []warehouse.Mismatch, left Left, err error) {
	if differ, err = db.Audit(ctx, since); err != nil || len(differ) == 0 {
		return differ, left, err
	}
	way, err := find()
	if err != nil || way == nil {
		return differ, left, err
	}
	mark, err := way.Mark(ctx)
	if err != nil {
		return differ, left, err
	}
	for deadline := time.Now().Add(patience); ; {
		if left, err = way.Left(ctx, mark); err != nil {
			return differ, left, err
		}
		if left.Rows() == 0 || time.Now().After(deadline) {
			break
		}
		select {
		case <-ctx.Done():
			return differ, left, ctx.Err()
		case <-time.After(pollWay):
		}
	}
	seen := map[warehouse.Mismatch]bool{}
	cells := map[warehouse.Cell]bool{}
	for _, m := range differ {
		seen[m], cells[m.Cell()] = true, true
	}
	again, err := db.AuditCells(ctx, slices.Collect(maps.Keys(cells)))
	return slices.DeleteFunc(again, func(m warehouse.Mismatch) bool { return !seen[m] }), left, err
}

// pollWay is the pause between two questions of AuditOnce about what is on its way.
const pollWay = 500 * time.Millisecond

// Auditor is what AuditOnce asks; *warehouse.DB is one.
type Auditor interface {
	Audit(ctx context.Context, since time.Time) ([]warehouse.Mismatch, error)
	AuditCells(ctx context.Context, cells []warehouse.Cell) ([]warehouse.Mismatch, error)
}
