package warehouse

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// rollUp counts what is due and fails if nothing was.
func rollUp(t testing.TB, db *DB) {
	t.Helper()
	done, err := db.RollUp(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if done.Days == 0 {
		t.Fatal("nothing was rolled up: the test would prove nothing")
	}
}

// Each rolled-up view beside the same question to labels_mature; the rows of one must be the rows of the other.
var rollupPairs = map[string][2]string{
	"ctr_hours": {
		`SELECT hour, experiment, variant, product, category, model_version, sum(impressions), sum(clicks) FROM ctr_hours GROUP BY ALL`,
		`SELECT toStartOfHour(toDateTime(event_time, 'UTC')) AS hour, experiment, variant, product, category, model_version, count(), sum(clicked)
			FROM labels_mature GROUP BY ALL`,
	},
	"ctr_days": {
		`SELECT day, experiment, variant, product, category, creative, placement, model_version,
			sum(impressions), sum(clicks), min(first_seen), max(last_seen)
			FROM ctr_days GROUP BY ALL`,
		`SELECT toDate(event_time, 'UTC') AS day, experiment, variant, product, category, creative, placement, model_version,
			count(), sum(clicked), min(event_time), max(event_time)
			FROM labels_mature GROUP BY ALL`,
	},
	"user_days": {
		`SELECT day, experiment, variant, user, sum(impressions), sum(clicks) FROM user_days GROUP BY ALL`,
		`SELECT toDate(event_time, 'UTC') AS day, experiment, variant, user, count(), sum(clicked) FROM labels_mature GROUP BY ALL`,
	},
	"user_totals": {
		`SELECT experiment, variant, user, sum(impressions), sum(clicks) FROM user_totals INNER JOIN experiment_arms USING (arm) GROUP BY ALL`,
		`SELECT experiment, variant, user, count(), sum(clicked) FROM labels_mature WHERE experiment != '' GROUP BY ALL`,
	},
}

// rollupsEqualScan compares every pair and returns how many impressions they speak of.
func rollupsEqualScan(t *testing.T, db *DB, after string) uint64 {
	t.Helper()
	for name, pair := range rollupPairs {
		var got [2]struct{ n, sum uint64 }
		for i, q := range pair {
			if err := db.QueryRow(t.Context(), "SELECT count(), sum(cityHash64(*)) FROM ("+q+")").Scan(&got[i].n, &got[i].sum); err != nil {
				t.Fatal(err)
			}
		}
		if got[0] != got[1] {
			t.Errorf("after %s: %s has the rows %v (count, hash), the scan has %v", after, name, got[0], got[1])
		}
	}
	return count(t, db, "SELECT count() FROM labels_mature")
}

// history makes labels that a warehouse could get, corrections to any earlier hour included.
type history struct {
	rng    *rand.Rand
	now    time.Time
	latest []LabelRow // the last version of each impression
	offset int64
	blocks int
	sent   map[string][]LabelRow
}

func (h *history) next() (token string, rows []LabelRow) {
	h.now = h.now.Add(time.Duration(h.rng.IntN(30*3600)) * time.Second)
	corrections := h.rng.IntN(2) * 3 // of ten rows, in every other block: otherwise no old day would ever stand still
	for range 40 + h.rng.IntN(100) {
		if len(h.latest) > 0 && h.rng.IntN(10) < corrections {
			r := &h.latest[h.rng.IntN(len(h.latest))]
			r.Version++
			switch {
			case r.Kind == eventpb.LabelKind_LABEL_KIND_PROVISIONAL_NEGATIVE && h.rng.IntN(2) == 0:
				r.Kind = eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE
			default:
				r.Kind, r.Clicked, r.Clicks = eventpb.LabelKind_LABEL_KIND_CORRECTED, true, r.Clicks+1
			}
			r.Suspect = h.rng.IntN(10) == 0 // may come and go
			rows = append(rows, h.stamp(*r))
			continue
		}
		var random [10]byte
		for j := range random {
			random[j] = byte(h.rng.Uint32())
		}
		p, c := h.rng.IntN(3), h.rng.IntN(3)
		r := LabelRow{
			Impression: schemas.NewImpressionID(h.now.Add(-time.Duration(h.rng.IntN(10*3600*1000))*time.Millisecond), random),
			Version:    1, User: h.rng.Uint64N(30), Product: fmt.Sprint("p", p), Creative: fmt.Sprint("c", p, c), Category: fmt.Sprint("home/", p),
			Placement: "feed", ModelVersion: fmt.Sprint("m", c), Bot: h.rng.IntN(20) == 0, Suspect: h.rng.IntN(20) == 0, Weight: 1,
			Kind: eventpb.LabelKind_LABEL_KIND_PROVISIONAL_NEGATIVE,
		}
		if h.rng.IntN(3) > 0 {
			r.Experiment, r.Variant = "x", []string{"control", "treatment"}[r.User%2]
		}
		if h.rng.IntN(3) == 0 {
			r.Kind, r.Clicked, r.Clicks = eventpb.LabelKind_LABEL_KIND_POSITIVE, true, 1
		}
		h.latest = append(h.latest, r)
		rows = append(rows, h.stamp(r))
	}
	h.blocks++
	token = fmt.Sprint("block-", h.blocks)
	h.sent[token] = rows
	return token, rows
}

func (h *history) stamp(r LabelRow) LabelRow {
	h.offset++
	r.Offset, r.WatermarkMS = h.offset, h.now.UnixMilli()
	return r
}

// any is a block that was sent before.
func (h *history) any() (token string, rows []LabelRow) {
	token = fmt.Sprint("block-", 1+h.rng.IntN(h.blocks))
	return token, h.sent[token]
}

// Random histories: whatever has happened to labels and to the rollups, also by kill -9 in the middle of an insert or
// of a rollup, every rolled-up view is what a scan of labels FINAL gives. Nothing is counted twice.
func TestRollupsEqualTheFinalScan(t *testing.T) {
	e := startEngine(t, EngineConfig{})
	db := connect(t, e.DSN())
	if err := db.Migrate(t.Context(), Options{Window: testWindow, Bucket: testBucket}); err != nil {
		t.Fatal(err)
	}
	h := &history{rng: rand.New(rand.NewPCG(7, 8)), now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), sent: map[string][]LabelRow{}}
	// again repeats what a kill has cut off, as the sink and RunRollups do.
	again := func(f func() error) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; {
			err := f()
			if err == nil {
				return
			}
			if Permanent(err) || time.Now().After(deadline) {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	insert := func(token string, rows []LabelRow) {
		t.Helper()
		again(func() error { return db.InsertLabels(t.Context(), token, rows) })
	}
	// killing runs f while the engine is killed.
	killing := func(f func()) {
		t.Helper()
		before, pid := e.Restarts(), e.PID()
		kill := time.AfterFunc(time.Duration(h.rng.IntN(40))*time.Millisecond, func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
		f()
		kill.Stop()
		_ = syscall.Kill(pid, syscall.SIGKILL) // f was faster
		eventually(t, "restart of the engine", func() bool { return e.Restarts() > before })
	}
	rolled := 0
	rollup := func() {
		t.Helper()
		again(func() error {
			done, err := db.RollUp(t.Context(), 0)
			rolled += done.Days
			return err
		})
	}
	for range 4 {
		insert(h.next())
	}
	steps := []struct {
		name string
		do   func()
	}{
		{"an insert", func() { insert(h.next()) }},
		{"another insert", func() { insert(h.next()) }},
		{"a retry with its token", func() { insert(h.any()) }},
		{"the same rows under another token", func() {
			_, rows := h.any()
			h.blocks++
			h.sent[fmt.Sprint("block-", h.blocks)] = rows
			insert(fmt.Sprint("block-", h.blocks), rows)
		}},
		{"a rollup", rollup},
		{"an insert and a rollup", func() { insert(h.next()); rollup() }},
		{"a merge", func() {
			again(func() error {
				var errs []error
				tables := []string{"labels", "label_hours", "rollups", "rollup_weeks"}
				for _, r := range rollupTables() {
					tables = append(tables, r.name)
				}
				for _, table := range tables {
					errs = append(errs, db.Exec(t.Context(), "OPTIMIZE TABLE "+table+" FINAL"))
				}
				return errors.Join(errs...)
			})
		}},
		{"a kill during inserts", func() { killing(func() { insert(h.next()); insert(h.next()) }) }},
		{"a kill during a rollup", func() { insert(h.next()); killing(rollup) }},
		{"a deletion", func() {
			row := h.latest[h.rng.IntN(len(h.latest))]
			again(func() error {
				return db.Exec(
					t.Context(),
					fmt.Sprintf(
						"ALTER TABLE labels DELETE WHERE user = %d AND toDate(event_time) = '%s' SETTINGS mutations_sync = 2",
						row.User,
						row.Impression.Time().Format(time.DateOnly),
					),
				)
			})
			again(func() error { return db.Touch(t.Context(), row.Impression.Time()) })
		}},
	}
	used, unused := 0, 0 // checks with a week in use, and with one that must not be
	check := func(after string) {
		t.Helper()
		rollupsEqualScan(t, db, after)
		var made, current uint64
		if err := db.QueryRow(t.Context(), "SELECT (SELECT count() FROM rollup_weeks FINAL), "+
			"(SELECT uniqExactIf(week_generation, week_generation != 0) FROM rollup_cells)").Scan(&made, &current); err != nil {
			t.Fatal(err)
		}
		used += int(min(current, 1))
		unused += int(min(made-current, 1))
	}
	for _, s := range steps { // each at least once
		s.do()
		check(s.name)
	}
	for range 8 {
		s := steps[h.rng.IntN(len(steps))]
		s.do()
		check(s.name)
	}
	rollup()
	if n := rollupsEqualScan(t, db, "all of it"); n < 200 {
		t.Errorf("%d impressions: the test proves little", n)
	}
	if cells := count(t, db, "SELECT count() FROM rollup_cells"); cells < 2 || rolled < 5 {
		t.Errorf("%d days rolled up in %d counts: the test proves little", cells, rolled)
	}
	if used < 5 || unused < 5 {
		t.Errorf("a week was in use in %d checks and out of use in %d: the test proves little", used, unused)
	}
	if raw, all := count(t, db, "SELECT count() FROM labels_unrolled"), count(t, db, "SELECT count() FROM labels_mature"); raw >= all/2 {
		t.Errorf("%d of %d impressions are not rolled up after a rollup", raw, all)
	}
}

// weekRows are the labels of an experiment's users on some days, two of them a day and user.
func weekRows(rng *rand.Rand, days ...time.Time) (rows []LabelRow) {
	for _, d := range days {
		for i := range 40 {
			var random [10]byte
			for j := range random {
				random[j] = byte(rng.Uint32())
			}
			user := uint64(i % 20)
			rows = append(rows, LabelRow{
				Impression: schemas.NewImpressionID(
					d.Add(time.Duration(i)*time.Minute),
					random,
				), Version: 1, User: user, Product: "p", Creative: "c", Weight: 1,
				Experiment: "x", Variant: []string{"control", "treatment"}[user%2], Kind: eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE,
				WatermarkMS: d.AddDate(0, 0, 30).UnixMilli(), Offset: int64(len(rows)),
			})
		}
	}
	return rows
}

// The life of a week: made of what has settled, out of use from a correction on, not made again before its time, and
// then without the day that has just changed.
func TestWeeks(t *testing.T) {
	db := database(t)
	monday := time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)
	rows := weekRows(
		rand.New(rand.NewPCG(3, 4)),
		monday.AddDate(0, 0, -1),
		monday,
		monday.AddDate(0, 0, 1),
		monday.AddDate(0, 0, 2),
		monday.AddDate(0, 0, 7),
	)
	if err := db.InsertLabels(t.Context(), "a", rows); err != nil {
		t.Fatal(err)
	}
	up := func(settled time.Duration, days, weeks int) {
		t.Helper()
		done, err := db.RollUp(t.Context(), settled)
		if err != nil || done.Days != days || done.Weeks != weeks {
			t.Errorf("%+v, %v: want %d days and %d weeks", done, err, days, weeks)
		}
	}
	// inUse is checked against the scan too: days that are in a week's totals, and rows that are read of both levels.
	inUse := func(after, days string, read int) {
		t.Helper()
		rollupsEqualScan(t, db, after)
		if got := strings.TrimSpace(lines(t, db,
			"SELECT arrayStringConcat(arraySort(groupArray(toString(day))), ' ') FROM rollup_cells WHERE week_generation != 0")); got != days {
			t.Errorf("after %s: %q are in a week's totals, want %q", after, got, days)
		}
		if got := count(t, db, "SELECT count() FROM user_totals"); got != uint64(read) {
			t.Errorf("after %s: user_totals has %d rows, want %d", after, got, read)
		}
	}
	age := func(table string) {
		exec1(t, db, "ALTER TABLE "+table+" UPDATE rolled = rolled - INTERVAL 2 HOUR WHERE 1 SETTINGS mutations_sync = 2")
	}
	up(time.Hour, 5, 0)
	inUse("a rollup of days that may still change", "", 5*20)
	age("rollups")
	up(time.Hour, 0, 1) // the Sunday before and the Monday after are alone in their weeks
	inUse("a week", "2026-03-02 2026-03-03 2026-03-04", 3*20)
	up(0, 0, 0)

	corrected := rows[45] // of the Monday
	corrected.Version, corrected.Clicked, corrected.Kind = 2, true, eventpb.LabelKind_LABEL_KIND_CORRECTED
	if err := db.InsertLabels(t.Context(), "b", []LabelRow{corrected}); err != nil {
		t.Fatal(err)
	}
	inUse("a correction", "", 4*20+40) // of the day without a rollup the impressions one by one
	up(time.Hour, 1, 0)                // the week is too young
	inUse("the day's new count", "", 5*20)
	age("rollup_weeks")
	up(time.Hour, 0, 1)
	inUse("the others of the week", "2026-03-03 2026-03-04", 4*20)
	age("rollups")
	up(time.Hour, 0, 0)
	age("rollup_weeks")
	up(time.Hour, 0, 1)
	inUse("the whole week again", "2026-03-02 2026-03-03 2026-03-04", 3*20)
	if n := count(t, db, "SELECT sum(clicks) FROM user_totals"); n != 1 {
		t.Errorf("%d clicks, want the correction's", n)
	}
	age("rollup_weeks")
	if done, err := db.RollUp(t.Context(), 0); err != nil || done.Dropped == 0 {
		t.Errorf("%+v, %v: nothing replaced was dropped", done, err)
	}
	if n := count(t, db, "SELECT uniqExact(week, generation) FROM rollup_users_weeks"); n != 1 {
		t.Errorf("%d generations are left, want the one in use", n)
	}
	inUse("dropping", "2026-03-02 2026-03-03 2026-03-04", 3*20)

	// A day that is gone, as retention does it.
	exec1(t, db, "ALTER TABLE labels DROP PARTITION 20260303")
	if err := db.Touch(t.Context(), monday.AddDate(0, 0, 1)); err != nil {
		t.Fatal(err)
	}
	inUse("a day that is gone", "", 4*20) // it has no impressions
	up(0, 1, 1)
	inUse("its count", "2026-03-02 2026-03-03 2026-03-04", 3*20) // its users are those of the others
	if n := count(t, db, "SELECT sum(impressions) FROM user_totals"); n != 4*40 {
		t.Errorf("%d impressions, want those of four days", n)
	}
}

// What was replaced is dropped, after a while; what is in use stays, and so does an attempt under way.
func TestOldGenerationsAreDropped(t *testing.T) {
	db := database(t)
	rows := world(rand.New(rand.NewPCG(5, 6)), 500)
	if err := db.InsertLabels(t.Context(), "a", rows); err != nil {
		t.Fatal(err)
	}
	rollUp(t, db)
	exec1(
		t,
		db,
		"INSERT INTO rollup_users (day, generation, experiment, variant, user) SELECT any(day), toUInt64(1), 'crash', '', 1 FROM rollups",
	) // long ago
	if err := db.Touch(t.Context(), rows[0].Impression.Time()); err != nil {
		t.Fatal(err)
	}
	rollUp(t, db) // too early to drop
	exec1(
		t,
		db,
		fmt.Sprintf(
			"INSERT INTO rollup_users (day, generation, experiment, variant, user) SELECT any(day), toUInt64(%d), 'under way', '', 1 FROM rollups",
			newGeneration(time.Now()),
		),
	)
	generations := func() string {
		return strings.TrimSpace(
			lines(
				t,
				db,
				"SELECT uniqExact(generation), countIf(experiment = 'crash'), countIf(experiment = 'under way') FROM rollup_users "+
					"WHERE day = (SELECT min(day) FROM rollups)",
			),
		)
	}
	if got := generations(); got != "3\t0\t1" { // the crashed one is old enough
		t.Errorf("generations %q, want both real ones and the one under way", got)
	}
	exec1(t, db, "ALTER TABLE rollups UPDATE rolled = rolled - INTERVAL 1 HOUR WHERE 1 SETTINGS mutations_sync = 2")
	done, err := db.RollUp(t.Context(), 0)
	if err != nil || done.Days != 0 || done.Dropped == 0 {
		t.Errorf("%+v, %v: want nothing counted and the old generation dropped", done, err)
	}
	if got := generations(); got != "2\t0\t1" {
		t.Errorf("generations %q, want the current one and the one under way", got)
	}
	rollupsEqualScan(t, db, "dropping")
}

// A horizon that falls back, as when a partition is added, takes the rollups beyond it out of use.
func TestRollupsBeyondTheHorizonDoNotCount(t *testing.T) {
	db := database(t)
	h := &history{rng: rand.New(rand.NewPCG(1, 1)), now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), sent: map[string][]LabelRow{}}
	for range 5 {
		token, rows := h.next()
		if err := db.InsertLabels(t.Context(), token, rows); err != nil {
			t.Fatal(err)
		}
	}
	rollUp(t, db)
	before := rollupsEqualScan(t, db, "a rollup")
	late := h.latest[0]
	late.Partition, late.WatermarkMS, late.Version = 1, time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC).UnixMilli(), 9
	if err := db.InsertLabels(t.Context(), "slow partition", []LabelRow{late}); err != nil {
		t.Fatal(err)
	}
	if after := rollupsEqualScan(t, db, "a slow partition"); after >= before {
		t.Errorf("%d impressions are mature, were %d: the horizon did not fall back", after, before)
	}
}

// The labels that were there before the rollups are in them.
func TestRollupsOfOlderLabels(t *testing.T) {
	db := database(t)
	if err := db.InsertLabels(t.Context(), "a", world(rand.New(rand.NewPCG(2, 2)), 2000)); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"label_hours", "label_partitions"} { // as in a database of an older version
		exec1(t, db, "DROP TABLE "+table+"_feed")
		exec1(t, db, "DROP TABLE "+table)
	}
	exec1(t, db, "ALTER TABLE schema_migrations DELETE WHERE version = 6 SETTINGS mutations_sync = 2")
	if err := db.Migrate(context.Background(), Options{}); err != nil {
		t.Fatal(err)
	}
	rollUp(t, db)
	if n := rollupsEqualScan(t, db, "the migration"); n == 0 {
		t.Error("no labels")
	}
}

// Ids that differ in the time alone, the worst case: their random bits are the same.
func TestVersionKeysAreUnique(t *testing.T) {
	db := database(t)
	q := "SELECT uniqExact(" + versionKey("version") + `) FROM
	(
		SELECT reinterpretAsUUID(bitShiftLeft(toUInt128(0xbfffffffffffffff), 64) +
				bitShiftLeft(toUInt128(1772539200000 + number % 1000), 16) + 0x7fff) AS impression_id,
			toUInt32(1 + intDiv(number, 1000)) AS version
		FROM numbers(8000)
	)`
	if n := count(t, db, q); n != 8000 {
		t.Errorf("%d keys of 1000 ids in 8 versions each", n)
	}
}
