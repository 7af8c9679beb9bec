package warehouse

import (
	"context"
	"fmt"
	"time"
)

// Retire removes whole days of impressions (event time, UTC) of which every label was inserted more than keep ago, by
// the server's clock, with their late events and decisions and what the audit says of them. It returns the days.
//
// The insert's time decides, not the event's: a log of years ago that is replayed today is not old. It is no TTL of
// the tables, because labels and their audit must go together, and a TTL strikes whenever a merge comes by.
func (db *DB) Retire(ctx context.Context, keep time.Duration) ([]time.Time, error) {
	rows, err := db.Query(ctx, `SELECT toStartOfDay(toDateTime(event_time, 'UTC')) AS day FROM labels GROUP BY day
		HAVING max(inserted_at) < now() - toIntervalSecond(?) ORDER BY day`, int64(keep.Seconds()))
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var days []time.Time
	for rows.Next() {
		var d time.Time
		if err := rows.Scan(&d); err != nil {
			return nil, err
		}
		days = append(days, d)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	for i, d := range days {
		if err := db.retireDay(ctx, d.UTC()); err != nil {
			return days[:i], fmt.Errorf("retire %s: %w", d.Format(time.DateOnly), err)
		}
	}
	return days, nil
}

// retireDay leaves the labels for last: while they are there, the day is found again after a crash.
func (db *DB) retireDay(ctx context.Context, day time.Time) error {
	from, to := day.Unix(), day.AddDate(0, 0, 1).Unix()
	for _, q := range []string{
		fmt.Sprintf("ALTER TABLE audit DELETE WHERE minute >= toDateTime(%d, 'UTC') AND minute < toDateTime(%d, 'UTC') "+
			"SETTINGS mutations_sync = 2", from, to),
		fmt.Sprintf("ALTER TABLE label_blocks DELETE WHERE minute >= toDateTime(%d, 'UTC') AND minute < toDateTime(%d, 'UTC') "+
			"SETTINGS mutations_sync = 2", from, to),
		fmt.Sprintf("ALTER TABLE late DELETE WHERE event_time >= toDateTime(%d, 'UTC') AND event_time < toDateTime(%d, 'UTC') "+
			"SETTINGS mutations_sync = 2", from, to),
		"ALTER TABLE decisions DROP PARTITION " + day.Format("20060102"),
		"ALTER TABLE labels DROP PARTITION " + day.Format("20060102"),
	} {
		if err := db.Exec(ctx, q); err != nil {
			return err
		}
	}
	return db.Touch(ctx, day)
}
