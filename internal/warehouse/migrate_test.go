package warehouse

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"ctrloop/schemas/table"
)

func TestMigrateTwice(t *testing.T) {
	db := database(t)
	shape := func() string {
		return lines(
			t,
			db,
			"SELECT name, engine, create_table_query, metadata_modification_time FROM system.tables WHERE database = currentDatabase() "+
				"AND name != 'parameters' ORDER BY name",
		)
	}
	before, applied := shape(), count(t, db, "SELECT count() FROM schema_migrations")
	if err := db.Migrate(t.Context(), Options{Window: 20 * time.Minute}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, shape()); diff != "" {
		t.Errorf("the second migration changed something:\n%s", diff)
	}
	if n := count(t, db, "SELECT count() FROM schema_migrations"); n != applied || n == 0 {
		t.Errorf("%d migrations recorded, were %d", n, applied)
	}
	if got := lines(t, db, "SELECT window_ms, bucket_ms FROM label_horizon"); got != "1200000\t1000\n" {
		t.Errorf("parameters %q: want the new window and the old bucket", got)
	}
}

// A view follows its text, a table must not change under the data.
func TestChangedMigrations(t *testing.T) {
	db := database(t)
	exec1(t, db, "INSERT INTO schema_migrations (version, name, sha256) VALUES (110, 'view_ctr', 'older text')")
	exec1(t, db, "DROP VIEW ctr_by_category")
	if err := db.Migrate(t.Context(), Options{}); err != nil {
		t.Fatal(err)
	}
	count(t, db, "SELECT count() FROM ctr_by_category")
	exec1(t, db, "INSERT INTO schema_migrations (version, name, sha256) VALUES (1, 'labels', 'other text')")
	err := db.Migrate(t.Context(), Options{})
	if !errors.Is(err, ErrRefused) {
		t.Fatalf("changed table: %v", err)
	}
	for _, want := range []string{"0001_labels", "new directory", "--accept 0001"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if err := db.Migrate(t.Context(), Options{Accept: []uint32{1}}); err != nil {
		t.Fatalf("accepted: %v", err)
	}
	if err := db.Migrate(t.Context(), Options{}); err != nil {
		t.Errorf("after it was accepted: %v", err)
	}
	exec1(t, db, "INSERT INTO schema_migrations (version, name, sha256) VALUES (9999, 'future', 'x')")
	if err := db.Migrate(t.Context(), Options{Accept: []uint32{9999}}); !errors.Is(err, ErrRefused) ||
		!strings.Contains(err.Error(), "newer") {
		t.Errorf("file of a newer version: %v", err)
	}
}

// Plan says what Migrate would do, and does none of it.
func TestPlan(t *testing.T) {
	file := func(v uint32, name string, sum string) migration {
		return migration{Version: v, Name: name, View: strings.HasPrefix(name, "view_"), Sum: sum, SQL: []string{"CREATE " + name}}
	}
	files := []migration{
		file(1, "a", "same"),
		file(2, "b", "new text"),
		file(3, "c", "new text"),
		file(4, "d", "x"),
		file(100, "view_e", "new text"),
		file(101, "view_f", "same"),
	}
	applied := map[uint32]appliedFile{
		1:   {"a", "same"},
		2:   {"b", "old text"},
		3:   {"c", "old text"},
		9:   {"z", "x"},
		100: {"view_e", "old text"},
		101: {"view_f", "same"},
	}
	var got []string
	for _, s := range plan(files, applied, []uint32{3}) {
		got = append(got, fmt.Sprint(s.Name, " ", s.State, " ", len(s.SQL)))
	}
	want := []string{"a applied 0", "b refused 0", "c accepted 0", "d new 1", "z refused 0", "view_e replaced 1", "view_f applied 0"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	name := "test_plan_empty"
	db := connect(t, strings.Replace(engine(t).DSN(), "/"+Database+"?", "/"+name+"?", 1))
	t.Cleanup(func() { _ = db.conn.Exec(context.Background(), "DROP DATABASE "+name) })
	steps, err := db.Plan(t.Context(), Options{})
	if err != nil || len(steps) < 10 {
		t.Fatalf("%d steps, %v", len(steps), err)
	}
	for _, s := range steps {
		if s.State != StepNew || len(s.SQL) == 0 || len(s.Checksum) != 64 {
			t.Errorf("%04d_%s in an empty database: %s, %d statements", s.Version, s.Name, s.State, len(s.SQL))
		}
	}
	if n := count(t, db, "SELECT count() FROM system.tables WHERE database = '"+name+"'"); n != 0 {
		t.Errorf("a plan made %d tables", n)
	}
}

func TestClusterText(t *testing.T) {
	all, err := migrations(table.Files, dialect{cluster: "prod"})
	if err != nil {
		t.Fatal(err)
	}
	distributed := 0
	for _, m := range all {
		for _, q := range m.SQL {
			create := strings.Contains(q, "CREATE ")
			if create && !strings.Contains(q, "ON CLUSTER `prod`") {
				t.Errorf("%s: not on the cluster: %.80s", m.Name, q)
			}
			if strings.Contains(q, "MergeTree(") && !strings.Contains(q, "_local ON CLUSTER") {
				t.Errorf("%s: data in a table without _local: %.80s", m.Name, q)
			}
			if strings.Contains(q, "MergeTree(") && !strings.Contains(q, "Replicated") {
				t.Errorf("%s: not replicated: %.80s", m.Name, q)
			}
			if strings.Contains(q, "ENGINE = Distributed(`prod`") {
				distributed++
			}
		}
	}
	if distributed < 14 {
		t.Errorf("%d distributed tables", distributed)
	}
}

func TestMigrationFiles(t *testing.T) {
	for name, files := range map[string]fstest.MapFS{
		"no number":    {"labels.sql": {}},
		"short number": {"1_labels.sql": {}},
		"same number":  {"0001_a.sql": {}, "0001_b.sql": {}},
		"bad template": {"0001_a.sql": {Data: []byte("{{nosuch}}")}},
	} {
		if _, err := migrations(files, dialect{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	got := statements("-- only a comment;\n\nSELECT 1\n-- inside;\n+ 1;\n-- why\nSELECT ';' AS x;\n\n")
	if diff := cmp.Diff([]string{"-- only a comment;\n\nSELECT 1\n-- inside;\n+ 1", "-- why\nSELECT ';' AS x"}, got); diff != "" {
		t.Error(diff)
	}
}

// The order of labels pays: questions about one experiment or one product read their ranges only, also
// through the views with FINAL.
func TestLabelsOrderPays(t *testing.T) {
	db := database(t)
	exec1(
		t,
		db,
		`INSERT INTO labels (impression_id, event_time, version, user, product, creative, experiment, variant, kind, clicked,
			watermark, partition, offset)
		SELECT generateUUIDv7(number), toDateTime64('2026-03-01 00:00:00', 3, 'UTC') + number % 80000, 1, sipHash64(number % 5000),
			concat('p', toString(sipHash64(number) % 100)), 'c', if(number % 10 = 0, concat('x', toString(number % 50)), ''),
			'control', 'final_negative', 0, toDateTime64('2026-03-03 00:00:00', 3, 'UTC'), number % 4, number
		FROM numbers(1000000)`,
	)
	exec1(t, db, "OPTIMIZE TABLE labels FINAL")
	marks := func(where string) (part, all int) {
		t.Helper()
		for line := range strings.SplitSeq(lines(t, db, "EXPLAIN indexes = 1 SELECT count() FROM labels FINAL WHERE "+where), "\n") {
			if _, err := fmt.Sscanf(strings.TrimSpace(line), "Granules: %d/%d", &part, &all); err == nil {
				continue
			}
		}
		return part, all // of the last index used: the primary key
	}
	for where, share := range map[string]float64{
		"experiment = 'x10'":                 0.06,
		"experiment = '' AND product = 'p7'": 0.05,
		"product = 'p7'":                     0.25, // each experiment has its own range of the product
	} {
		part, all := marks(where)
		if all < 100 || float64(part) > share*float64(all) {
			t.Errorf("%s reads %d of %d granules, want at most %.0f %%", where, part, all, 100*share)
		}
	}
}
