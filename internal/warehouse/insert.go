package warehouse

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"

	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/schemas/eventpb"
)

// AuditRow is one record of audit.v1 with its place.
type AuditRow struct {
	*eventpb.AuditMinute
	Place
}

// LateRow is one record of late.v1 with its place.
type LateRow struct {
	*eventpb.Late
	Place
}

// DeadLetterRow is one record of dlq.v1 with its place and its time.
type DeadLetterRow struct {
	*eventpb.DeadLetter
	Place
	TimeMS int64 // Unix ms
}

// Place is where a mirrored record was read. Topic is the topic's id, so that a topic that was made anew
// does not overwrite rows of its predecessor.
type Place struct {
	TopicID   string
	Partition int32
	Offset    int64
}

// ControlRow is one command of control.v1 with its place and the fold's verdict.
type ControlRow struct {
	control.Event
	Place
	Rejected string // why the fold refused it; empty: applied
}

// ProductRow is one product of the catalogue.
type ProductRow struct {
	ID, Title, Category string
	Holdout             bool
}

// column is one column of an insert: a name and a slice.
type column struct {
	name   string
	values any
}

func col[R, V any](name string, rows []R, f func(*R) V) column {
	v := make([]V, len(rows))
	for i := range rows {
		v[i] = f(&rows[i])
	}
	return column{name, v}
}

// insert sends one block of a small table. The table's key must make it idempotent: the server's own memory
// of blocks is switched off, because a value that changes and changes back would be taken for a repetition.
func (db *DB) insert(ctx context.Context, table string, cols []column) error {
	settings := clickhouse.Settings{
		"async_insert":                    0, // an answer means applied
		"max_partitions_per_insert_block": 0, // a replayed backlog may span more than the default 100 days
		// Send LowCardinality columns as plain strings: building dictionaries is slow in the client
		// (a boxed map entry per value) and fast in the server.
		"low_cardinality_allow_in_native_format": 0,
		"distributed_foreground_insert":          1, // on a cluster too an answer means applied, on every shard
		"insert_deduplicate":                     0,
	}
	names := make([]string, len(cols))
	for i, c := range cols {
		names[i] = c.name
	}
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(settings))
	batch, err := db.conn.PrepareBatch(ctx, "INSERT INTO "+table+" ("+strings.Join(names, ", ")+")")
	if err != nil {
		return fmt.Errorf("insert into %s: %w", table, err)
	}
	for i, c := range cols {
		if err := batch.Column(i).Append(c.values); err != nil {
			return errors.Join(fmt.Errorf("insert into %s, column %s: %w", table, c.name, err), batch.Abort())
		}
	}
	if err := batch.Send(); err != nil {
		return fmt.Errorf("insert into %s: %w", table, err)
	}
	return nil
}

// InsertCreatives records the state of creatives; the last insert of an id wins.
func (db *DB) InsertCreatives(ctx context.Context, rows []schemas.Creative) error {
	if len(rows) == 0 {
		return nil
	}
	type r = schemas.Creative
	return db.insert(ctx, "creatives", []column{
		col("id", rows, func(r *r) string { return r.ID }),
		col("product", rows, func(r *r) string { return r.Product }),
		col("category", rows, func(r *r) string { return r.Category }),
		col("model_version", rows, func(r *r) string { return r.ModelVersion }),
		col("description", rows, func(r *r) string { return r.Description }),
		col("backend", rows, func(r *r) string { return r.Backend }),
		col("seed", rows, func(r *r) uint64 { return r.Seed }),
		col("asset", rows, func(r *r) string { return r.Asset }),
		col("width_px", rows, func(r *r) uint16 { return uint16(r.WidthPx) }),
		col("height_px", rows, func(r *r) uint16 { return uint16(r.HeightPx) }),
		col("valid", rows, func(r *r) uint8 { return bit(r.Valid) }),
		col("prior", rows, func(r *r) float64 { return r.Prior }),
		col("blocked", rows, func(r *r) string { return r.Blocked }),
		col("created", rows, func(r *r) int64 { return clampTime(r.Created) }),
	})
}

// InsertPairs records pairs; an id is inserted once however often it comes.
func (db *DB) InsertPairs(ctx context.Context, rows []schemas.Pair) error {
	if len(rows) == 0 {
		return nil
	}
	type r = schemas.Pair
	return db.insert(ctx, "pairs", []column{
		col("id", rows, func(r *r) string { return r.ID }),
		col("product", rows, func(r *r) string { return r.Product }),
		col("category", rows, func(r *r) string { return r.Category }),
		col("placement", rows, func(r *r) string { return r.Placement }),
		col("from_time", rows, func(r *r) int64 { return clampMS(r.FromMS) }),
		col("to_time", rows, func(r *r) int64 { return clampMS(r.ToMS) }),
		col("chosen", rows, func(r *r) string { return r.Chosen.Creative }),
		col("chosen_impressions", rows, func(r *r) int64 { return r.Chosen.Impressions }),
		col("chosen_clicks", rows, func(r *r) int64 { return r.Chosen.Clicks }),
		col("chosen_mean", rows, func(r *r) float64 { return r.Chosen.Mean }),
		col("rejected", rows, func(r *r) string { return r.Rejected.Creative }),
		col("rejected_impressions", rows, func(r *r) int64 { return r.Rejected.Impressions }),
		col("rejected_clicks", rows, func(r *r) int64 { return r.Rejected.Clicks }),
		col("rejected_mean", rows, func(r *r) float64 { return r.Rejected.Mean }),
		col("weight", rows, func(r *r) float64 { return r.Weight }),
		col("left", rows, func(r *r) uint8 { return bit(r.Left) }),
		col("split", rows, func(r *r) string { return r.Split }),
		col("policy", rows, func(r *r) string { return r.Policy }),
	})
}

// InsertControl mirrors commands; a place in the log is one row however often it comes. Applied
// commands also feed model_versions, jobs, job_metrics and datasets.
func (db *DB) InsertControl(ctx context.Context, rows []ControlRow) error {
	if len(rows) == 0 {
		return nil
	}
	type r = ControlRow
	return db.insert(ctx, "control_log", []column{
		col("source", rows, func(r *r) string { return r.TopicID }),
		col("offset", rows, func(r *r) int64 { return r.Offset }),
		col("id", rows, func(r *r) string { return r.ID }),
		col("type", rows, func(r *r) string { return string(r.Type) }),
		col("entity", rows, func(r *r) string { return r.Entity }),
		col("expect", rows, func(r *r) *int64 { return r.Expect }),
		col("actor", rows, func(r *r) string { return r.Actor }),
		col("note", rows, func(r *r) string { return r.Note }),
		col("time", rows, func(r *r) int64 { return clampTime(r.Time) }),
		col("data", rows, func(r *r) string { return string(r.Data) }),
		col("rejected", rows, func(r *r) string { return r.Rejected }),
	})
}

// InsertProducts records the catalogue; the last insert of an id wins.
func (db *DB) InsertProducts(ctx context.Context, rows []ProductRow) error {
	if len(rows) == 0 {
		return nil
	}
	type r = ProductRow
	return db.insert(ctx, "products", []column{
		col("id", rows, func(r *r) string { return r.ID }),
		col("title", rows, func(r *r) string { return r.Title }),
		col("category", rows, func(r *r) string { return r.Category }),
		col("department", rows, func(r *r) string { d, _, _ := strings.Cut(r.Category, "/"); return d }),
		col("holdout", rows, func(r *r) uint8 { return bit(r.Holdout) }),
	})
}

// InsertAudit mirrors audit.v1; a place is one row however often it comes.
func (db *DB) InsertAudit(ctx context.Context, rows []AuditRow) error {
	if len(rows) == 0 {
		return nil
	}
	type r = AuditRow
	return db.insert(ctx, "audit", []column{
		col("partition", rows, func(r *r) uint16 { return uint16(r.AuditMinute.Partition) }),
		col("minute", rows, func(r *r) int64 { return clampMS(r.MinuteMs) / 1000 }),
		col("labels", rows, func(r *r) uint64 { return r.Labels }),
		col("positive", rows, func(r *r) uint64 { return r.Positive }),
		col("hash_xor", rows, func(r *r) uint64 { return r.HashXor }),
		col("hash_sum", rows, func(r *r) uint64 { return r.HashSum }),
		col("source", rows, func(r *r) string { return r.TopicID }),
		col("source_partition", rows, func(r *r) uint16 { return uint16(r.Place.Partition) }),
		col("source_offset", rows, func(r *r) int64 { return r.Offset }),
	})
}

// InsertLate mirrors late.v1; a place is one row however often it comes. An id that is none becomes zero.
func (db *DB) InsertLate(ctx context.Context, rows []LateRow) error {
	if len(rows) == 0 {
		return nil
	}
	type r = LateRow
	return db.insert(ctx, "late", []column{
		col("reason", rows, func(r *r) string { return r.Reason }),
		col("impression_id", rows, func(r *r) uuid.UUID {
			id, err := uuid.FromBytes(r.ImpressionId)
			if err != nil {
				return uuid.Nil
			}
			return id
		}),
		col("event_time", rows, func(r *r) int64 { return clampMS(r.TimeMs) }),
		col("watermark", rows, func(r *r) int64 { return clampMS(r.WatermarkMs) }),
		col("topic", rows, func(r *r) string { return r.Topic }),
		col("partition", rows, func(r *r) uint16 { return uint16(r.Late.Partition) }),
		col("offset", rows, func(r *r) int64 { return r.Late.Offset }),
		col("source", rows, func(r *r) string { return r.TopicID }),
		col("source_partition", rows, func(r *r) uint16 { return uint16(r.Place.Partition) }),
		col("source_offset", rows, func(r *r) int64 { return r.Place.Offset }),
	})
}

// sampleBytes bounds what is kept of a dead letter, and of its explanation.
const sampleBytes = 500

// InsertDeadLetters mirrors dlq.v1; a place is one row however often it comes.
func (db *DB) InsertDeadLetters(ctx context.Context, rows []DeadLetterRow) error {
	if len(rows) == 0 {
		return nil
	}
	type r = DeadLetterRow
	return db.insert(ctx, "dead_letters", []column{
		col("reason", rows, func(r *r) string { return r.Reason }),
		col("detail", rows, func(r *r) string { return r.Detail[:min(len(r.Detail), sampleBytes)] }),
		col("impression_id", rows, func(r *r) uuid.UUID { return impressionOf(r.DeadLetter) }),
		col("time", rows, func(r *r) int64 { return clampMS(r.TimeMS) }),
		col("topic", rows, func(r *r) string { return r.Topic }),
		col("partition", rows, func(r *r) uint16 { return uint16(r.DeadLetter.Partition) }),
		col("offset", rows, func(r *r) int64 { return r.DeadLetter.Offset }),
		col("bytes", rows, func(r *r) uint32 { return uint32(len(r.Value)) }),
		col("sample", rows, func(r *r) string { return string(r.Value[:min(len(r.Value), sampleBytes)]) }),
		col("source", rows, func(r *r) string { return r.TopicID }),
		col("source_partition", rows, func(r *r) uint16 { return uint16(r.Place.Partition) }),
		col("source_offset", rows, func(r *r) int64 { return r.Place.Offset }),
	})
}

var anyUUID = regexp.MustCompile(`(?i)\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b`)

// impressionOf is the id that a dead letter is about: its key, or the first id that it names; zero: neither.
func impressionOf(d *eventpb.DeadLetter) uuid.UUID {
	if id, err := uuid.FromBytes(d.Key); err == nil {
		return id
	}
	id, _ := uuid.ParseBytes(anyUUID.Find(d.Value[:min(len(d.Value), sampleBytes)]))
	return id
}

func bit(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// maxMS is the last second of 2105, the end of ClickHouse's DateTime, which minutes and hours are cut to.
const maxMS = 4_291_747_199_000

// clampMS keeps Unix milliseconds inside of what the tables' types hold.
func clampMS(ms int64) int64 { return min(max(ms, 0), maxMS) }

func clampTime(t time.Time) int64 { return clampMS(t.UnixMilli()) }
