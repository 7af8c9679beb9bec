package warehouse

import (
	"context"
	"fmt"
	"time"
)

// Mismatch is a minute of impression time in which the labels here differ from what the joiner says that it
// wrote (view audit_mismatch). Two of them are equal when nothing has moved in between.
type Mismatch struct {
	Partition    uint16    `json:"partition"` // of labels.v1
	Minute       time.Time `json:"minute"`
	WantLabels   uint64    `json:"want_labels"`
	Labels       uint64    `json:"labels"`
	WantPositive uint64    `json:"want_positive"`
	Positive     uint64    `json:"positive"`
	WantXor      uint64    `json:"want_xor"`
	Xor          uint64    `json:"xor"`
	WantSum      uint64    `json:"want_sum"`
	Sum          uint64    `json:"sum"`
}

// Missing is how many labels are not there; negative when there are too many. 0 is a difference in their
// ids or verdicts only.
func (m Mismatch) Missing() int64 { return int64(m.WantLabels - m.Labels) }

// Cell is what is audited: the labels of a minute of impression time in a partition of labels.v1.
type Cell struct {
	Partition uint16
	Minute    time.Time
}

// Cell of the mismatch.
func (m Mismatch) Cell() Cell { return Cell{m.Partition, m.Minute} }

// maxMismatches bounds the answers of audits.
const maxMismatches = 10_000

const auditSelect = `SELECT partition, minute, want_labels, labels, want_positive, positive, want_xor, hash_xor, want_sum, hash_sum
	FROM audit_mismatch WHERE minute >= toDateTime(?, 'UTC')`

// Audit returns the minutes since a time of impressions (the zero time: all) that differ, oldest first, at most
// 10,000. Labels and their audit travel separately: what differs now may be on its way (sink.Way).
// It reads every label of that time.
func (db *DB) Audit(ctx context.Context, since time.Time) ([]Mismatch, error) {
	return db.audit(ctx, auditSelect+" ORDER BY minute, partition LIMIT ?", max(since.Unix(), 0), maxMismatches)
}

// AuditBlocks returns the cells since a time of impressions in which the sums of inserted blocks differ from what the joiner
// says, oldest first, at most 10,000. It reads no labels; AuditCells does, of these.
func (db *DB) AuditBlocks(ctx context.Context, since time.Time) ([]Cell, error) {
	rows, err := db.Query(ctx, `SELECT partition, minute FROM audit_blocks WHERE minute >= toDateTime(?, 'UTC')
		ORDER BY minute, partition LIMIT ?`, max(since.Unix(), 0), maxMismatches)
	if err != nil {
		return nil, fmt.Errorf("audit of blocks: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var out []Cell
	for rows.Next() {
		var c Cell
		if err := rows.Scan(&c.Partition, &c.Minute); err != nil {
			return nil, fmt.Errorf("audit of blocks: %w", err)
		}
		out = append(out, c)
	}
	return out, rows.Err()
}

// AuditCells is Audit of the minutes of some cells.
func (db *DB) AuditCells(ctx context.Context, cells []Cell) ([]Mismatch, error) {
	if len(cells) == 0 {
		return nil, nil
	}
	first, last := cells[0].Minute, cells[0].Minute
	minutes := make([]uint32, len(cells))
	for i, c := range cells {
		minutes[i] = uint32(c.Minute.Unix())
		if c.Minute.Before(first) {
			first = c.Minute
		}
		if c.Minute.After(last) {
			last = c.Minute
		}
	}
	return db.audit(ctx, auditSelect+` AND minute <= toDateTime(?, 'UTC') AND has(?, toUnixTimestamp(minute))
		ORDER BY minute, partition LIMIT ?`, first.Unix(), last.Unix(), minutes, maxMismatches)
}

func (db *DB) audit(ctx context.Context, query string, args ...any) ([]Mismatch, error) {
	rows, err := db.Query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var out []Mismatch
	for rows.Next() {
		var m Mismatch
		err := rows.Scan(
			&m.Partition, &m.Minute, &m.WantLabels, &m.Labels, &m.WantPositive, &m.Positive, &m.WantXor, &m.Xor, &m.WantSum, &m.Sum)
		if err != nil {
			return nil, fmt.Errorf("audit: %w", err)
		}
		m.Minute = m.Minute.UTC()
		out = append(out, m)
	}
	return out, rows.Err()
}

// NewestAudited is the newest minute that audit.v1 has spoken of; the zero time when it has not.
func (db *DB) NewestAudited(ctx context.Context) (at time.Time, err error) {
	var n uint64
	if err := db.QueryRow(ctx, "SELECT count(), max(minute) FROM audit").Scan(&n, &at); err != nil || n == 0 {
		return time.Time{}, err
	}
	return at, nil
}
