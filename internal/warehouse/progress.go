package warehouse

import (
	"context"
	"time"
)

// Progress is how far the join has come in one partition of labels.v1, with every label up to there in the warehouse.
type Progress struct {
	Partition   int32
	WatermarkMS int64 // event time, Unix ms; 0: none yet
}

// InsertProgress records it for every partition of the topic with this id; the newest topic counts (view label_horizon). A
// watermark never goes back.
func (db *DB) InsertProgress(ctx context.Context, topicID string, rows []Progress, now time.Time) error {
	if len(rows) == 0 {
		return nil
	}
	type r = Progress
	return db.insert(ctx, "label_progress", []column{
		col("source", rows, func(*r) string { return topicID }),
		col("partition", rows, func(r *r) uint16 { return uint16(r.Partition) }),
		col("watermark", rows, func(r *r) int64 { return clampMS(r.WatermarkMS) }),
		col("time", rows, func(*r) int64 { return clampTime(now) }),
	})
}
