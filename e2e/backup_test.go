package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// shopLog is batch i of a shop that does not stop: 50 impressions of ten seconds, a click on every tenth of them, and the
// promise that nothing older follows.
func shopLog(i int) string {
	var b strings.Builder
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli() + int64(i)*10_000
	for j := range 50 {
		at := base + int64(j)*200
		id := uuid7(at, i*50+j)
		fmt.Fprintf(
			&b,
			`{"type":"impression","id":%q,"product":"p%d","creative":"c","placement":"home","position":1,"user":"u%d","propensity":1}`+"\n",
			id,
			j%3,
			j,
		)
		if j%10 == 0 {
			fmt.Fprintf(&b, `{"type":"click","id":"k%d","impression_id":%q,"time_ms":%d}`+"\n", i*50+j, id, at+900)
		}
	}
	fmt.Fprintf(&b, `{"type":"watermark","time_ms":%d}`+"\n", base+10_000)
	return b.String()
}

// Backups of an instance into which events come without a break. Each is restored, is exact by its own audit as it
// stands, and after the whole log was sent again, in which it recognises what it has, it holds every label once.
func TestBackupOfARunningInstance(t *testing.T) {
	needEngine(t)
	dir := filepath.Join(t.TempDir(), "store")
	config := write(
		t,
		"ingest: {clock: event}\nkafka: {retention: -1s, partitions: 2}\njoiner: {window: 1m, lateness: 1s}\nsink: {flush_interval: 50ms}\n",
	)
	running := up(t, dir, "--target", "ingest,joiner,sink", "--config", config)
	rows := func(dir string) string {
		return sql(
			t,
			dir,
			"SELECT concat(toString(count()), ' ', toString(uniqExact(impression_id)), ' ', toString((SELECT sum(labels) FROM audit FINAL)), ' ', "+
				"toString((SELECT count() FROM audit_mismatch))) FROM labels",
		)
	}
	settled := func(dir string, want func(labels, distinct, audited, differ int) bool) {
		t.Helper()
		got := ""
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
			var labels, distinct, audited, differ int
			got = rows(dir)
			if _, err := fmt.Sscan(got, &labels, &distinct, &audited, &differ); err == nil && want(labels, distinct, audited, differ) {
				return
			}
		}
		t.Fatalf("%s: labels, ids, audited labels, minutes that differ: %s", dir, got)
	}

	sent := 0
	send := func(n int) {
		for ; n > 0; n-- {
			post(t, running.Edge, shopLog(sent))
			sent++
		}
	}
	send(20)
	settled(dir, func(labels, _, _, _ int) bool { return labels > 0 })
	var backups []string
	for i := range 2 {
		to := filepath.Join(t.TempDir(), fmt.Sprint("backup", i))
		done := make(chan string)
		go func() {
			_, stderr, code := ctrloop(t, "backup", "--dir", dir, to)
			done <- fmt.Sprint(code, " ", stderr)
		}()
		for busy := true; busy; {
			select {
			case said := <-done:
				if !strings.HasPrefix(said, "0 ") {
					t.Fatal(said)
				}
				busy = false
			case <-time.After(time.Millisecond):
				if sent < 200*(i+1) { // or hours of events would gather on a slow machine
					send(1)
				}
			}
		}
		backups = append(backups, to)
	}
	send(10)
	all := sent * 50
	const end = `{"type":"watermark","time_ms":1800000000000}`
	post(t, running.Edge, end)
	exact := func(labels, distinct, audited, differ int) bool {
		return labels == all && distinct == all && audited == all && differ == 0
	}
	settled(dir, exact)

	// The instance need not be stopped for an erasure either; rows of the last two minutes are left.
	if out, stderr, code := ctrloop(t, "erase", "user", "u1", "--dir", dir); code != 0 || !strings.Contains(out, "left for another run") ||
		!strings.Contains(out, "labels.v1") ||
		!strings.Contains(out, "NEVER") {
		t.Errorf("erase beside a running instance: exit %d: %s%s", code, out, stderr)
	}

	for _, from := range backups {
		back := filepath.Join(t.TempDir(), "back")
		if _, stderr, code := ctrloop(t, "restore", "--dir", back, from); code != 0 {
			t.Fatal(stderr)
		}
		if _, err := os.Stat(filepath.Join(back, "refill.json")); err != nil {
			t.Error(err)
		}
		// At rest it lacks what came between the moments of its stores, or nothing.
		if _, stderr, code := ctrloop(t, "audit", "--dir", back); code != 0 && !strings.Contains(stderr, "ctrloop up --dir "+back) {
			t.Errorf("audit at rest: exit %d: %s", code, stderr)
		}
		restored := up(t, back, "--target", "ingest,joiner,sink", "--config", config)
		settled(back, func(labels, distinct, audited, differ int) bool {
			_, err := os.Stat(filepath.Join(back, "refill.json"))
			return os.IsNotExist(err) && labels > 0 && labels < all && labels == distinct && labels == audited && differ == 0
		})
		for i := range sent {
			post(t, restored.Edge, shopLog(i))
		}
		post(t, restored.Edge, end)
		settled(back, exact)
	}
}
