package warehouse

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/go-faster/city"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// audited inserts rows with the audit that a joiner would write.
func audited(t *testing.T, db *DB, token string, rows []LabelRow) {
	t.Helper()
	if err := db.InsertLabels(t.Context(), token, rows); err != nil {
		t.Fatal(err)
	}
	minutes := map[int64]*eventpb.AuditMinute{}
	for _, r := range rows {
		ms := r.Impression.UnixMilli() / 60_000 * 60_000
		a := minutes[ms]
		if a == nil {
			a = &eventpb.AuditMinute{MinuteMs: ms, Partition: r.Partition}
			minutes[ms] = a
		}
		h := city.CH64(r.Impression[:])
		a.Labels++
		a.HashXor ^= h
		a.HashSum += h
		if r.Clicked {
			a.Positive++
		}
	}
	var out []AuditRow
	for ms, a := range minutes {
		out = append(out, AuditRow{AuditMinute: a, Place: Place{TopicID: token, Offset: ms}})
	}
	if err := db.InsertAudit(t.Context(), out); err != nil {
		t.Fatal(err)
	}
}

// crowd is 4000 labels of 40 users over two days, corrections among them.
func crowd(seed uint64) (rows []LabelRow) {
	rng := rand.New(rand.NewPCG(seed, seed))
	start := time.Date(2026, 3, 1, 22, 0, 0, 0, time.UTC)
	for i := range 4000 {
		at := start.Add(time.Duration(i) * 4 * time.Second)
		var random [10]byte
		for j := range random {
			random[j] = byte(rng.Uint32())
		}
		clicked := rng.IntN(10) == 0
		r := LabelRow{
			Impression:  schemas.NewImpressionID(at, random),
			Version:     1,
			User:        uint64(1)<<63 + uint64(rng.IntN(40)),
			Product:     "p",
			Creative:    "c",
			Experiment:  "x",
			Variant:     "control",
			Kind:        eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE,
			Weight:      1,
			WatermarkMS: at.Add(time.Hour).UnixMilli(),
		}
		rows = append(rows, r)
		if clicked {
			r.Version, r.Clicked, r.Kind = 2, true, eventpb.LabelKind_LABEL_KIND_CORRECTED
			rows = append(rows, r)
		}
	}
	return rows
}

// An erasure that dies at any step is finished by the next one; others keep every row; the audit and the rollups
// agree with what is left.
func TestErase(t *testing.T) {
	for _, dies := range []eraseStep{"", eraseBegun, eraseAudited, eraseCounted, eraseDeleted} {
		t.Run("dies at "+string(dies), func(t *testing.T) {
			db := database(t)
			rows := crowd(1)
			audited(t, db, "crowd", rows)
			rollUp(t, db)
			user := rows[0].User
			mine, clicks := 0, 0
			for _, r := range rows {
				if r.User == user {
					mine++
				} else if r.Clicked {
					clicks++
				}
			}
			now, err := db.Clock(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if dies != "" {
				planned := errors.New("dies")
				_, err := db.erase(t.Context(), Person{User: user}, now, nil, func(at eraseStep) error {
					if at == dies {
						return planned
					}
					return nil
				})
				if !errors.Is(err, planned) {
					t.Fatalf("got %v", err)
				}
			}
			e, err := db.Erase(t.Context(), Person{User: user}, now.Add(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			if e.Rows() < uint64(mine) || dies != "" && !e.Until.Equal(now) {
				t.Errorf("proof %+v: want at least %d rows, until %v", e, mine, now)
			}
			left := len(rows) - mine
			if n := count(t, db, "SELECT count() FROM labels"); n != uint64(left) {
				t.Errorf("%d rows left, want %d", n, left)
			}
			if n := count(t, db, fmt.Sprintf("SELECT count() FROM rollup_users WHERE user = %d", user)); n != 0 {
				t.Errorf("the rollups know the user in %d rows", n)
			}
			if n := count(t, db, "SELECT count() FROM audit_mismatch"); n != 0 {
				t.Errorf("%d minutes of the audit differ", n)
			}
			if n := count(t, db, "SELECT sum(clicks) FROM ctr_by_creative"); n != uint64(clicks) {
				t.Errorf("the views count %d clicks, want %d", n, clicks)
			}
			rollupsEqualScan(t, db, "the erasure")
			proven := "SELECT sum(rows_before) FROM erasures FINAL WHERE user = %d AND state = 'done' AND table = 'labels'"
			if n := count(t, db, fmt.Sprintf(proven, user)); n != uint64(mine) {
				t.Errorf("the stored proof speaks of %d rows, want %d", n, mine)
			}
			for _, tab := range e.Tables {
				if n := count(t, db, tab.Query); n != 0 {
					t.Errorf("%s: %d", tab.Query, n)
				}
			}
			if n := count(t, db, "SELECT count() FROM audit_blocks"); n != 0 {
				t.Errorf("the sums of blocks differ in %d minutes", n)
			}
			runs := count(t, db, "SELECT count() FROM erasures")
			if _, err := db.Erase(t.Context(), Person{User: user}, now.Add(2*time.Minute)); !errors.Is(err, ErrNobody) {
				t.Errorf("again: %v, want that there is nobody", err)
			}
			if n := count(t, db, "SELECT count() FROM erasures"); n != runs {
				t.Error("a proof of nothing was stored")
			}
			if n := count(t, db, "SELECT count() FROM audit_mismatch"); n != 0 {
				t.Errorf("%d minutes of the audit differ after the second run", n)
			}
		})
	}
}

// S19, N9: who is not named is not erased, whatever the command says.
func TestEraseOfNobody(t *testing.T) {
	db := database(t)
	rows := crowd(1)
	for i := range rows[:10] {
		rows[i].User = 0
	}
	audited(t, db, "crowd", rows)
	for _, who := range []Person{{}, {Text: ""}, {User: 12345}, {User: 12345, Text: "bob"}} {
		if _, err := db.Erase(t.Context(), who, time.Now().Add(time.Hour)); !errors.Is(err, ErrNobody) {
			t.Errorf("%+v: %v", who, err)
		}
	}
	if n := count(t, db, "SELECT count() FROM labels"); n != uint64(len(rows)) {
		t.Errorf("%d rows left of %d", n, len(rows))
	}
	if n := count(t, db, "SELECT count() FROM erasures"); n != 0 {
		t.Errorf("%d proofs of nothing", n)
	}
}

// V9: every table with a column that may hold a person is known to the erasure, or is named here with why it holds none.
func TestErasureKnowsEveryTableOfPeople(t *testing.T) {
	db := database(t)
	nobody := map[string]string{
		"erasures.user":    "whom was erased: kept, so that a warehouse that is made anew can be cleared again",
		"control_log.data": "forced users are hidden (control.HideUnit); of older logs the proof counts them (InClear)",
	}
	tables, err := db.userTables(t.Context(), Erasure{User: 7, Until: time.Now()}, "alice")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, x := range tables {
		known[x.Table] = true
		if strings.Contains(x.Query, "alice") {
			t.Errorf("the proof of %s names the person: %s", x.Table, x.Query)
		}
		if n := count(t, db, x.Query); n != 0 {
			t.Errorf("%s: %d", x.Query, n)
		}
	}
	var columns []struct {
		Table string `ch:"table"`
		Name  string `ch:"name"`
	}
	err = db.Select(t.Context(), &columns, `SELECT table, name FROM system.columns WHERE database = currentDatabase()
		AND table IN (SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree')
		AND match(name, '(?i)user|unit|person|client|device|ip_|email|sample|value_bytes|payload|data$')`)
	if err != nil {
		t.Fatal(err)
	}
	if len(columns) < 6 {
		t.Fatalf("%d columns: the test sees nothing", len(columns))
	}
	for _, c := range columns {
		if !known[c.Table] && nobody[c.Table+"."+c.Name] == "" {
			t.Errorf("%s.%s may hold a person, and the erasure does not know the table", c.Table, c.Name)
		}
	}
}

// V9: exposures hold what the client calls its user: the hash, or the id itself.
func TestEraseReachesExposures(t *testing.T) {
	db := database(t)
	err := db.Exec(t.Context(), `INSERT INTO exposures (experiment, unit, day, variant, time)
		SELECT 'x', arrayJoin(['77', 'alice', 'bob', '7']), toDate('2026-03-01'), 'control', toDateTime64('2026-03-01 12:00:00', 3, 'UTC')`)
	if err != nil {
		t.Fatal(err)
	}
	e, err := db.Erase(t.Context(), Person{User: 77, Text: "alice"}, time.Now())
	if err != nil || e.Rows() != 2 {
		t.Fatalf("%+v, %v", e, err)
	}
	if got := lines(t, db, "SELECT unit FROM exposures ORDER BY unit"); got != "7\nbob\n" {
		t.Errorf("left: %q", got)
	}
}
