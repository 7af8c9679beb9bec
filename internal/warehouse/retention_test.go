package warehouse

import (
	"testing"
	"time"
)

// A day goes when its newest label is old by the clock of inserts, labels and audit together; a day that had a row
// today stays whole.
func TestRetire(t *testing.T) {
	db := database(t)
	rows := crowd(3) // from 22:00 on, over two days
	audited(t, db, "crowd", rows)
	rollUp(t, db)
	if days, err := db.Retire(t.Context(), time.Hour); err != nil || len(days) != 0 {
		t.Fatalf("fresh rows of an old day are retired: %v, %v", days, err)
	}
	first := uint64(0)
	for _, r := range rows {
		if r.Impression.Time().UTC().Day() == 1 {
			first++
		}
	}
	exec1(
		t,
		db,
		"ALTER TABLE labels UPDATE inserted_at = inserted_at - INTERVAL 3 DAY WHERE toDate(event_time) = '2026-03-01' "+
			"SETTINGS mutations_sync = 2",
	)
	days, err := db.Retire(t.Context(), 48*time.Hour)
	if err != nil || len(days) != 1 || days[0].Format(time.DateOnly) != "2026-03-01" {
		t.Fatalf("%v, %v", days, err)
	}
	if n := count(t, db, "SELECT count() FROM labels"); n != uint64(len(rows))-first || first == 0 {
		t.Errorf("%d rows left of %d, %d of the first day", n, len(rows), first)
	}
	if n := count(t, db, "SELECT count() FROM audit_mismatch"); n != 0 {
		t.Errorf("%d minutes of the audit differ", n)
	}
	if n := count(t, db, "SELECT count() FROM audit WHERE toDate(minute) = '2026-03-01'"); n != 0 {
		t.Errorf("%d records of the audit are left", n)
	}
	rollupsEqualScan(t, db, "the retirement")
	if days, err := db.Retire(t.Context(), 48*time.Hour); err != nil || len(days) != 0 {
		t.Errorf("again: %v, %v", days, err)
	}
}
