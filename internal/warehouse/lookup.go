package warehouse

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"ctrloop/schemas"
)

// MaxLookup bounds the ids of one ClickedAmong: the text of a question must stay below the engine's 256 KiB.
const MaxLookup = 4000

// ClickedAmong returns the impressions among ids that have a label, and whether they were clicked.
func (db *DB) ClickedAmong(ctx context.Context, ids []schemas.ImpressionID) (map[schemas.ImpressionID]bool, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	if len(ids) > MaxLookup {
		return nil, fmt.Errorf("look up %d impressions: at most %d at a time (a bug)", len(ids), MaxLookup)
	}
	texts := make([]string, len(ids))
	from, to := ids[0].UnixMilli(), ids[0].UnixMilli()
	for i, id := range ids {
		texts[i] = id.String()
		from, to = min(from, id.UnixMilli()), max(to, id.UnixMilli())
	}
	const query = `SELECT impression_id AS id, clicked FROM labels_latest
WHERE event_time BETWEEN fromUnixTimestamp64Milli(?) AND fromUnixTimestamp64Milli(?) AND impression_id IN (?)`
	var rows []struct {
		ID      uuid.UUID `ch:"id"`
		Clicked uint8     `ch:"clicked"`
	}
	if err := db.Select(ctx, &rows, query, from, to, texts); err != nil {
		return nil, fmt.Errorf("look up impressions: %w", err)
	}
	out := make(map[schemas.ImpressionID]bool, len(rows))
	for _, r := range rows {
		out[schemas.ImpressionID(r.ID)] = r.Clicked != 0
	}
	return out, nil
}

// MatureBetween counts the impressions that figures may count, and the clicked ones among them, from one event time to
// another, Unix milliseconds, both included.
func (db *DB) MatureBetween(ctx context.Context, fromMS, toMS int64) (impressions, clicked uint64, err error) {
	const query = `SELECT count(), countIf(clicked) FROM labels_mature
WHERE event_time BETWEEN fromUnixTimestamp64Milli(?) AND fromUnixTimestamp64Milli(?)`
	if err := db.QueryRow(ctx, query, fromMS, toMS).Scan(&impressions, &clicked); err != nil {
		return 0, 0, fmt.Errorf("count mature impressions: %w", err)
	}
	return impressions, clicked, nil
}

// Count asks for one number, as a row of one UInt64.
func (db *DB) Count(ctx context.Context, query string, args ...any) (int64, error) {
	var n uint64
	if err := db.QueryRow(ctx, query, args...).Scan(&n); err != nil {
		return 0, fmt.Errorf("%s: %w", query, err)
	}
	return int64(n), nil
}
