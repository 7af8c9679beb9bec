package warehouse

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/rs/zerolog"

	"ctrloop/internal/telemetry"
)

// Rollup is what one call of RollUp did.
type Rollup struct {
	Days    int // counted anew
	Weeks   int // added up anew
	Dropped int // generations that nobody reads any more, of all rollup tables
}

const (
	// rollupGrace is how long a replaced generation stays for queries that have begun to read it. The longest query
	// of a person takes readOnlyMaxSeconds.
	rollupGrace = 10 * time.Minute
	// rollupOrphan is the age at which a generation that was never put to use is taken for the rest of a crash.
	rollupOrphan = 6 * time.Hour
	// rollupSettled is for how long a day must not have changed before it goes into its week's totals, and how old those
	// must be before they are made again. Recent days get corrections all the time: with them a week would be made anew
	// every minute and be out of use most of the time. It bounds the work too: a week of 17 million rows is
	// a few seconds in ten minutes at the very worst.
	rollupSettled = 10 * time.Minute
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
	WHERE (generation = 0 OR until != made_until OR touched != made_touched) AND (SELECT timeless = 0 FROM label_horizon)
	ORDER BY due_day`

// hasTime says that the row's partition of labels.v1 has a watermark. The first condition is a constant of the query: while
// all have one, which is nearly always, no column is read for it. Days are not rolled up while one has none: its rows
// would be missing from them once it has.
const hasTime = "((SELECT timeless = 0 FROM label_horizon) OR " +
	"NOT has((SELECT timeless_partitions FROM label_horizon), partition))"

// trusted says that the row was not made while a circuit breaker was open, or that a person has cleared it since. While there
// are no reviews the second half is a constant of the query, and no column is read for it.
const trusted = "(suspect = 0 OR ((SELECT count() > 0 FROM label_reviews) AND " +
	"(toStartOfHour(toDateTime(event_time, 'UTC')), partition, product, placement) GLOBAL IN (" +
	"SELECT hour, partition, product, placement FROM label_reviews " +
	"GROUP BY hour, partition, product, placement HAVING argMax(verdict, time) = 'cleared')))"

// The condition on versions is that of labels_latest, on one day. The table carries its database: on a cluster the
// shards read the text too, with a default database of their own.
var rollupRows = strings.NewReplacer("{version}", versionKey("version"), "{version before}", versionKey("version - 1")).Replace(`
	FROM {labels} FINAL
	WHERE event_time >= {from:DateTime('UTC')} AND event_time < {until:DateTime('UTC')} AND bot = 0 AND ` + trusted + `
		AND {version} GLOBAL NOT IN
		(
			SELECT {version before}
			FROM {labels}
			WHERE version > 1 AND event_time >= {from:DateTime('UTC')} AND event_time < {until:DateTime('UTC')}
		)`)

var rollupSteps = []string{
	`INSERT INTO rollup_ctr_hours (day, generation, hour, experiment, variant, product, category, model_version, impressions, clicks)
	SELECT toDate({from:DateTime('UTC')}, 'UTC'), {generation:UInt64}, toStartOfHour(toDateTime(event_time, 'UTC')) AS hour,
		experiment, variant, product, category, model_version, count(), sum(clicked)` + rollupRows + `
	GROUP BY hour, experiment, variant, product, category, model_version`,
	`INSERT INTO rollup_ctr_days (day, generation, experiment, variant, product, category, creative, placement, model_version,
		impressions, clicks, first_seen, last_seen)
	SELECT toDate({from:DateTime('UTC')}, 'UTC'), {generation:UInt64}, experiment, variant, product, category, creative, placement,
		model_version, count(), sum(clicked), min(event_time), max(event_time)` + rollupRows + `
	GROUP BY experiment, variant, product, category, creative, placement, model_version`,
	`INSERT INTO rollup_users (day, generation, experiment, variant, user, impressions, clicks)
	SELECT toDate({from:DateTime('UTC')}, 'UTC'), {generation:UInt64}, experiment, variant, user,
		toUInt32(count()), toUInt32(sum(clicked))` + rollupRows + `
	GROUP BY experiment, variant, user`,
	// From here on it counts.
	`INSERT INTO rollups (day, generation, until, touched)
	SELECT toDate({from:DateTime('UTC')}, 'UTC'), {generation:UInt64}, {until:DateTime('UTC')}, {touched:UInt64}`,
}

// rollupWeek is a week whose days are to be added up.
type rollupWeek struct {
	Week time.Time `ch:"week"`       // its Monday
	Days string    `ch:"days"`       // as rollup_weeks has them, as text
	Last uint64    `ch:"generation"` // 0: none
}

// Weeks whose settled days are other ones, or in other generations, than those that were added up. One day alone is
// as good by itself.
const rollupWeeksDue = `
	SELECT due.week AS week, toString(due.days) AS days, made.generation AS generation
	FROM
	(
		SELECT toMonday(day) AS week, arraySort(groupArray((day, generation))) AS days
		FROM (SELECT day, generation FROM rollup_cells WHERE until = toDateTime(day + 1, 'UTC')) AS cells
		INNER JOIN (SELECT day, generation, rolled AS counted FROM rollups FINAL) AS counts USING (day, generation)
		WHERE counted <= now64(3) - toIntervalMillisecond({settled:Int64})
		GROUP BY week
		HAVING length(days) > 1
	) AS due
	LEFT JOIN (SELECT week, generation, days, rolled FROM rollup_weeks FINAL) AS made USING (week)
	WHERE made.generation = 0 OR made.days != due.days AND made.rolled <= now64(3) - toIntervalMillisecond({settled:Int64})
	ORDER BY week`

// armKey is the number of an experiment's variant. Each name is hashed once for a block of rows, not once a row: a
// function of one LowCardinality column is evaluated on its dictionary.
const armKey = "bitXor(toUInt64(sipHash64(experiment)), toUInt64(cityHash64(variant)))"

// versionKey is an impression's id and one of its versions as one number of 128 bits, which a set looks up at half the
// cost of the pair. The version is added at the place of the four bits that are the same in all ids (UUIDv7), so two
// pairs share a number only where a version is above 8 and two ids have the same 74 random bits.
func versionKey(version string) string {
	return "(reinterpretAsUInt128(impression_id) + bitShiftLeft(toUInt128(" + version + "), 12))"
}

// A generation of a day never changes once it is in use, so nothing has to be held still while it is read. One that is
// replaced meanwhile makes a week that never counts.
var rollupWeekSteps = []string{
	`INSERT INTO rollup_users_weeks (week, generation, arm, user, impressions, clicks)
	SELECT {week:Date}, {generation:UInt64}, ` + armKey + ` AS arm, user, toUInt32(sum(impressions)), toUInt32(sum(clicks))
	FROM rollup_users
	WHERE experiment != '' AND (day, generation) IN (SELECT arrayJoin({days:Array(Tuple(Date, UInt64))}))
	GROUP BY arm, user`,
	// From here on it counts.
	`INSERT INTO rollup_weeks (week, generation, days) SELECT {week:Date}, {generation:UInt64}, {days:Array(Tuple(Date, UInt64))}`,
}

// RollUp counts days anew whose labels have changed or matured since they were counted last, oldest first, adds up
// weeks of days that have not changed for as long as settled, and drops what it has replaced. Views are exact before,
// during and after: it makes them fast. It may be stopped or killed anywhere and may run in several processes at a time.
func (db *DB) RollUp(ctx context.Context, settled time.Duration) (Rollup, error) {
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
	var weeks []rollupWeek
	within := clickhouse.Context(ctx, clickhouse.WithParameters(clickhouse.Parameters{"settled": fmt.Sprint(settled.Milliseconds())}))
	if err := db.Select(within, &weeks, rollupWeeksDue); err != nil {
		return done, fmt.Errorf("find the weeks to add up: %w", err)
	}
	for _, w := range weeks {
		if err := db.rollUpWeek(ctx, w); err != nil {
			return done, err
		}
		done.Weeks++
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
		clickhouse.WithSettings(rollupSettings()))
	labels := quoteName(db.database) + ".labels"
	for i, q := range rollupSteps {
		if err := db.Exec(ctx, strings.ReplaceAll(q, "{labels}", labels)); err != nil {
			return fmt.Errorf("roll up %s, step %d: %w", d.Day.Format(time.DateOnly), i+1, err)
		}
	}
	return nil
}

// rollUpWeek adds up one week.
func (db *DB) rollUpWeek(ctx context.Context, w rollupWeek) error {
	ctx = clickhouse.Context(ctx,
		clickhouse.WithParameters(clickhouse.Parameters{
			"week": w.Week.Format(time.DateOnly), "days": w.Days, "generation": fmt.Sprint(max(newGeneration(time.Now()), w.Last+1)),
		}),
		clickhouse.WithSettings(rollupSettings()))
	for i, q := range rollupWeekSteps {
		if err := db.Exec(ctx, q); err != nil {
			return fmt.Errorf("add up the week of %s, step %d: %w", w.Week.Format(time.DateOnly), i+1, err)
		}
	}
	return nil
}

func rollupSettings() clickhouse.Settings {
	return clickhouse.Settings{
		"async_insert": 0, "insert_deduplicate": 0,
		"distributed_foreground_insert":      1,         // the last step must not be there before the others
		"max_bytes_before_external_group_by": 512 << 20, // a day of many users on a small machine
		"max_partitions_per_insert_block":    0,
		// One shard asks all. A shard that is asked to insert its own part does not know the database that a subquery names without saying.
		"parallel_distributed_insert_select": 0,
		// Both hold for labels: equal keys have equal event times, hence one partition.
		"do_not_merge_across_partitions_select_final": 1,
	}
}

// newGeneration names an attempt: the time in nanoseconds with its last 20 bits (a millisecond) drawn at
// random, so that two processes do not write under one name.
func newGeneration(now time.Time) uint64 {
	return uint64(now.UnixNano())&^(1<<20-1) | rand.Uint64N(1<<20)
}

// rollupTable holds generations of a span, of which the registry names the one in use.
type rollupTable struct{ name, span, registry string }

func rollupTables() []rollupTable {
	return []rollupTable{
		{"rollup_ctr_hours", "day", "rollups"}, {"rollup_ctr_days", "day", "rollups"}, {"rollup_users", "day", "rollups"},
		{"rollup_users_weeks", "week", "rollup_weeks"},
	}
}

// dropGenerations drops what was replaced some time ago, and what crashed attempts have left.
func (db *DB) dropGenerations(ctx context.Context) (int, error) {
	dropped := 0
	now := time.Now()
	for _, t := range rollupTables() {
		var stale []struct {
			Span       time.Time `ch:"span"`
			Generation uint64    `ch:"generation"`
		}
		err := db.Select(ctx, &stale, fmt.Sprintf(`
			SELECT there.span AS span, there.generation AS generation
			FROM (SELECT %[2]s AS span, generation, count() AS n FROM %[1]s GROUP BY span, generation) AS there
			LEFT JOIN (SELECT %[2]s AS span, generation, rolled FROM %[3]s FINAL) AS current ON there.span = current.span
			WHERE there.generation < current.generation AND current.rolled < now64(3) - toIntervalMillisecond(?)
				OR there.generation != current.generation AND there.generation < ?`, t.name, t.span, t.registry),
			rollupGrace.Milliseconds(), uint64(now.Add(-rollupOrphan).UnixNano()))
		if err != nil {
			return dropped, fmt.Errorf("find old generations of %s: %w", t.name, err)
		}
		d := db.dialect
		for _, g := range stale {
			q := fmt.Sprintf(
				"ALTER TABLE %s %sDROP PARTITION ('%s', %d)",
				d.local(t.name),
				d.onCluster(),
				g.Span.Format(time.DateOnly),
				g.Generation,
			)
			if err := db.Exec(ctx, q); err != nil {
				return dropped, fmt.Errorf("drop an old generation of %s: %w", t.name, err)
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

// RunRollups calls RollUp every interval until ctx ends, while this process leads: two at a time do no harm, and count
// everything twice. A failure is logged and tried again: views only become slower by it.
func (db *DB) RunRollups(ctx context.Context, interval time.Duration, leads func() bool, work *telemetry.Work, log zerolog.Logger) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if !leads() {
			work.Worked() // whoever leads rolls up
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			continue
		}
		began := time.Now()
		done, err := db.RollUp(ctx, rollupSettled)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			work.Failed(err)
			log.Warn().Err(err).Msg("labels were not rolled up, questions over long spans are slow until they are")
		case done.Days+done.Weeks > 0:
			log.Debug().Int("days", done.Days).Int("weeks", done.Weeks).Int("dropped", done.Dropped).Dur("took", time.Since(began)).
				Msg("labels rolled up")
		}
		if err == nil {
			work.Worked()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
