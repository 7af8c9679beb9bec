package warehouse

import (
	"context"
	"time"

	"ctrloop/schemas"
)

// TracedLabel is a version of an impression's label.
type TracedLabel struct {
	Version    uint32    `json:"version" ch:"version"`
	Kind       string    `json:"kind" ch:"kind"`
	Clicked    uint8     `json:"clicked" ch:"clicked"`
	DelayMS    int64     `json:"click_delay_ms" ch:"click_delay_ms"`
	Clicks     uint32    `json:"clicks" ch:"clicks"`
	Partition  uint16    `json:"partition" ch:"partition"`
	Offset     int64     `json:"offset" ch:"offset"`
	InsertedAt time.Time `json:"inserted_at" ch:"inserted_at"`
}

// LabelsOf reads an impression's labels, oldest first; its id picks the table's partition.
func (db *DB) LabelsOf(ctx context.Context, id schemas.ImpressionID) ([]TracedLabel, error) {
	rows := []TracedLabel{}
	err := db.Select(ctx, &rows, `
		SELECT version, toString(kind) AS kind, clicked, click_delay_ms, clicks, partition, offset, inserted_at FROM labels FINAL
		WHERE impression_id = toUUID(?) AND event_time = fromUnixTimestamp64Milli(?) ORDER BY version`, id.String(), id.UnixMilli())
	return rows, err
}

// Refused is an event that became no label of its own.
type Refused struct {
	Kind      string    `json:"kind" ch:"kind"` // dead letter, late
	Reason    string    `json:"reason" ch:"reason"`
	Detail    string    `json:"detail,omitempty" ch:"detail"`
	Time      time.Time `json:"time" ch:"time"` // of the record
	Topic     string    `json:"topic" ch:"topic"`
	Partition uint16    `json:"partition" ch:"partition"`
	Offset    int64     `json:"offset" ch:"offset"`
}

// RefusedOf reads the events about an impression that became no label of their own.
func (db *DB) RefusedOf(ctx context.Context, id schemas.ImpressionID) ([]Refused, error) {
	var rows []Refused
	err := db.Select(ctx, &rows, `
		SELECT kind, reason, detail, time, topic, partition, offset FROM rejected
		WHERE impression_id = toUUID(?) ORDER BY time LIMIT 100`, id.String())
	return rows, err
}
