package warehouse

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/rs/zerolog"
)

// Rollup is what one call of RollUp did.
type Rollup struct {
	Days    int // counted anew
	Dropped int // generations that nobody reads any more, of all rollup tables
}

const (
	// rollupGrace is how long a replaced generation stays for queries that have begun to read it. The longest query
	// of a person takes readOnlyMaxSeconds.
	rollupGrace = 10 * time.Minute
	// rollupOrphan is the age at which a generation that was never put to use is taken for the rest of a crash.
	rollupOrphan = 6 * time.Hour
)

// rollupDay is a day that is to be counted.
type rollupDay struct {
	Day     time.Time `ch:"day"`
	Until   time.Time `ch:"until"`
	Touched uint64    `ch:"touched"`
	Last    uint64    `ch:"generation"` // 0: none
}

// Days whose mature hours have had rows since they were counted, or have become more. Hours after the
// horizon's are left to the views.
const rollupDue = `
	WITH (SELECT toStartOfHour(toDateTime(fromUnixTimestamp64Milli(greatest(horizon_ms, 0) + 1, 'UTC'), 'UTC')) FROM label_horizon) AS open
	SELECT toDateTime(due_day, 'UTC') AS day, until, touched, generation
	FROM
	(
		SELECT toDate(hour, 'UTC') AS due_day, least(toDateTime(due_day + 1, 'UTC'), open) AS until, sum(rows) AS touched
		FROM label_hours
		WHERE hour < open
		GROUP BY due_day
	) AS due
	LEFT JOIN (SELECT day AS due_day, generation, until AS made_until, touched AS made_touched FROM rollups FINAL) AS made USING (due_day)
	WHERE generation = 0 OR until != made_until OR touched != made_touched
	ORDER BY due_day`

// The condition on versions is that of labels_latest, on one day. The table carries its database: on a cluster the
// shards read the text too, with a default database of their own.
const rollupRows = `
	FROM {labels} FINAL
	WHERE event_time >= {from:DateTime('UTC')} AND event_time < {until:DateTime('UTC')} AND bot = 0 AND suspect = 0
		AND (impression_id, version) GLOBAL NOT IN
		(
			SELECT impression_id, toUInt32(version - 1)
			FROM {labels}
			WHERE version > 1 AND event_time >= {from:DateTime('UTC')} AND event_time < {until:DateTime('UTC')}
		)`

var rollupSteps = []string{
	`INSERT INTO rollup_ctr_hours (day, generation, hour, experiment, variant, product, category, model_version, impressions, clicks)
	SELECT toDate({from:DateTime('UTC')}, 'UTC'), {generation:UInt64}, toStartOfHour(toDateTime(event_time, 'UTC')) AS hour,
		experiment, variant, product, category, model_version, count(), sum(clicked)` + rollupRows + `
	GROUP BY hour, experiment, variant, product, category, model_version`,
	`INSERT INTO rollup_ctr_days (day, generation, experiment, variant, product, category, creative, placement, model_version, impressions, clicks, first_seen, last_seen)
	SELECT toDate({from:DateTime('UTC')}, 'UTC'), {generation:UInt64}, experiment, variant, product, category, creative, placement, model_version,
		count(), sum(clicked), min(event_time), max(event_time)` + rollupRows + `
	GROUP BY experiment, variant, product, category, creative, placement, model_version`,
	`INSERT INTO rollup_users (day, generation, experiment, variant, user, impressions, clicks)
	SELECT toDate({from:DateTime('UTC')}, 'UTC'), {generation:UInt64}, experiment, variant, user, toUInt32(count()), toUInt32(sum(clicked))` + rollupRows + `
	GROUP BY experiment, variant, user`,
	// From here on it counts.
	`INSERT INTO rollups (day, generation, until, touched)
	SELECT toDate({from:DateTime('UTC')}, 'UTC'), {generation:UInt64}, {until:DateTime('UTC')}, {touched:UInt64}`,
}

// RollUp counts days anew whose labels have changed or matured since they were counted last, oldest first,
// and drops what it has replaced. Views are exact before, during and after: it makes them fast. It may be
// stopped or killed anywhere and may run in several processes at a time.
func (db *DB) RollUp(ctx context.Context) (Rollup, error) {
	var done Rollup
	var due []rollupDay
	if err := db.Select(ctx, &due, rollupDue); err != nil {
		return done, fmt.Errorf("find the days to roll up: %w", err)
	}
	for _, d := range due {
		if err := db.rollUpDay(ctx, d); err != nil {
			return done, err
		}
		done.Days++
	}
	var err error
	done.Dropped, err = db.dropGenerations(ctx)
	return done, err
}

// rollUpDay counts one day. d.Touched was read before: what comes while the day is counted makes it due again.
func (db *DB) rollUpDay(ctx context.Context, d rollupDay) error {
	ctx = clickhouse.Context(ctx,
		clickhouse.WithParameters(clickhouse.Parameters{
			"from": d.Day.UTC().Format(time.DateTime), "until": d.Until.UTC().Format(time.DateTime),
			"generation": fmt.Sprint(max(newGeneration(time.Now()), d.Last+1)), "touched": fmt.Sprint(d.Touched),
		}),
		clickhouse.WithSettings(clickhouse.Settings{
			"async_insert": 0, "insert_deduplicate": 0,
			"distributed_foreground_insert":      1,         // the last step must not be there before the others
			"max_bytes_before_external_group_by": 512 << 20, // a day of many users on a small machine
			"max_partitions_per_insert_block":    0,
			// Both hold for labels: equal keys have equal event times, hence one partition.
			"do_not_merge_across_partitions_select_final": 1,
		}))
	labels := quoteName(db.database) + ".labels"
	for i, q := range rollupSteps {
		if err := db.Exec(ctx, strings.ReplaceAll(q, "{labels}", labels)); err != nil {
			return fmt.Errorf("roll up %s, step %d: %w", d.Day.Format(time.DateOnly), i+1, err)
		}
	}
	return nil
}

// newGeneration names an attempt: the time in nanoseconds with its last 20 bits (a millisecond) drawn at
// random, so that two processes do not write under one name.
func newGeneration(now time.Time) uint64 {
	return uint64(now.UnixNano())&^(1<<20-1) | rand.Uint64N(1<<20)
}

// rollupTables hold generations.
func rollupTables() []string {
	return []string{"rollup_ctr_hours", "rollup_ctr_days", "rollup_users"}
}

// dropGenerations drops what was replaced some time ago, and what crashed attempts have left.
func (db *DB) dropGenerations(ctx context.Context) (int, error) {
	dropped := 0
	now := time.Now()
	for _, name := range rollupTables() {
		var stale []struct {
			Day        time.Time `ch:"day"`
			Generation uint64    `ch:"generation"`
		}
		err := db.Select(ctx, &stale, `
			SELECT there.day AS day, there.generation AS generation
			FROM (SELECT day, generation, count() AS n FROM `+name+` GROUP BY day, generation) AS there
			LEFT JOIN (SELECT day, generation, rolled FROM rollups FINAL) AS current ON there.day = current.day
			WHERE there.generation < current.generation AND current.rolled < now64(3) - toIntervalMillisecond(?)
				OR there.generation != current.generation AND there.generation < ?`,
			rollupGrace.Milliseconds(), uint64(now.Add(-rollupOrphan).UnixNano()))
		if err != nil {
			return dropped, fmt.Errorf("find old generations of %s: %w", name, err)
		}
		d := db.dialect
		for _, g := range stale {
			q := fmt.Sprintf("ALTER TABLE %s %sDROP PARTITION ('%s', %d)", d.local(name), d.onCluster(), g.Day.Format(time.DateOnly), g.Generation)
			if err := db.Exec(ctx, q); err != nil {
				return dropped, fmt.Errorf("drop an old generation of %s: %w", name, err)
			}
			dropped++
		}
	}
	return dropped, nil
}

// Touch makes the views count these days from labels until they are rolled up anew. Whoever has changed or
// removed rows of labels by other means than inserts must call it afterwards; each Time names its UTC day.
func (db *DB) Touch(ctx context.Context, days ...time.Time) error {
	if len(days) == 0 {
		return nil
	}
	hours, rows := make([]int64, len(days)), make([]uint64, len(days))
	for i, d := range days {
		hours[i], rows[i] = d.UTC().Truncate(24*time.Hour).Unix(), 1
	}
	return db.insert(ctx, "label_hours", []column{{"hour", hours}, {"rows", rows}})
}

// KeepRolledUp calls RollUp every interval until ctx ends. A failure is logged and tried again: views only
// become slower by it.
func (db *DB) KeepRolledUp(ctx context.Context, interval time.Duration, log zerolog.Logger) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		began := time.Now()
		done, err := db.RollUp(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			log.Warn().Err(err).Msg("labels were not rolled up, questions over long spans are slow until they are")
		case done.Days > 0:
			log.Debug().Int("days", done.Days).Int("dropped", done.Dropped).Dur("took", time.Since(began)).Msg("labels rolled up")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
