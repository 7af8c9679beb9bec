package warehouse

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"ctrloop/internal/snapshot"
)

// restored makes a folder of what was frozen, through a snapshot.
func restored(t *testing.T, e *Engine, f Frozen) string {
	t.Helper()
	copied, back := filepath.Join(t.TempDir(), "copy"), filepath.Join(t.TempDir(), "back")
	_, err := snapshot.Write(t.Context(), copied, []snapshot.Source{{Dir: e.Dir(), Only: f.Keep, Live: true}, {Dir: f.Links, As: Store}}, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := snapshot.Restore(t.Context(), copied, back); err != nil {
		t.Fatal(err)
	}
	return back
}

// An engine is frozen between inserts that do not stop. One that is started on the copy has every row that was acknowledged
// before, none that began after, no rollups, and goes on: mutations, inserts, views.
func TestFreezeWhileWriting(t *testing.T) {
	e := startEngine(t, EngineConfig{})
	db := connect(t, e.DSN())
	if err := db.Migrate(t.Context(), Options{Window: time.Minute, Bucket: time.Second}); err != nil {
		t.Fatal(err)
	}
	rows := crowd(3)
	audited(t, db, "before", rows[:2000])
	if err := db.Exec(t.Context(), "ALTER TABLE labels DELETE WHERE user = 1 SETTINGS mutations_sync = 2"); err != nil {
		t.Fatal(err)
	}
	if _, err := db.RollUp(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	stopped, frozen := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(stopped)
		for i := 2000; i < 3000; i += 10 {
			if err := db.InsertLabels(t.Context(), time.Now().String(), rows[i:i+10]); err != nil {
				t.Error(err)
				return
			}
			select {
			case <-frozen:
				return
			default:
			}
		}
	})
	f, err := e.Freeze(t.Context(), db)
	close(frozen)
	if err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	audited(t, db, "after", rows[3000:])

	back := startEngine(t, EngineConfig{Dir: restored(t, e, f)})
	old := connect(t, back.DSN())
	if err := old.Migrate(t.Context(), Options{Window: time.Minute, Bucket: time.Second}); err != nil {
		t.Fatal(err)
	}
	count := func(query string) (n uint64) {
		t.Helper()
		if err := old.QueryRow(t.Context(), query).Scan(&n); err != nil {
			t.Fatal(query, err)
		}
		return n
	}
	if n := count("SELECT count() FROM labels"); n < 2000 || n > 3000 {
		t.Errorf("%d labels, want the 2000 that were acknowledged, and none of what came later", n)
	}
	if n := count("SELECT count() FROM rollups"); n != 0 {
		t.Errorf("%d days of rollups, want none", n)
	}
	if n := count("SELECT count() FROM labels_mature"); n == 0 || n != count("SELECT sum(impressions) FROM ctr_days") {
		t.Error("the views do not agree with labels")
	}
	if n := count("SELECT count() FROM system.mutations WHERE table = 'labels' AND is_done"); n != 1 {
		t.Errorf("%d mutations, want the one that was done", n)
	}
	audited(t, old, "behind", rows[3000:])
	if _, err := old.RollUp(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if n := count("SELECT count() FROM audit FINAL"); n == 0 {
		t.Error("there is no audit")
	}

	if err := f.Release(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(f.Links); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("links are left: %v", err)
	}
}

// A backup does not fall into an erasure, nor into a mutation that is at work.
func TestFreezeBesideDeletions(t *testing.T) {
	db := database(t)
	audited(t, db, "erased", crowd(4)[:100])
	died := errors.New("died")
	_, err := db.erase(t.Context(), Person{User: 1 << 63}, time.Now().Add(time.Hour), nil, func(s eraseStep) error {
		if s == eraseAudited {
			return died
		}
		return nil
	})
	if !errors.Is(err, died) {
		t.Fatal(err)
	}
	if _, err := db.deletions(t.Context()); !errors.Is(err, ErrBusy) {
		t.Errorf("in the middle of an erasure: %v", err)
	}
	if _, err := db.Erase(t.Context(), Person{User: 1 << 63}, time.Now()); err != nil {
		t.Fatal(err)
	}
	before, err := db.deletions(t.Context())
	if err != nil || before["labels"] == "" {
		t.Errorf("behind the erasure: %v, %v", before, err)
	}
	exec1(t, db, "SYSTEM STOP MERGES labels")
	exec1(t, db, "ALTER TABLE labels DELETE WHERE user = 2 SETTINGS mutations_sync = 0")
	if _, err := db.deletions(t.Context()); !errors.Is(err, ErrBusy) {
		t.Errorf("beside a mutation: %v", err)
	}
	exec1(t, db, "SYSTEM START MERGES labels")
}
