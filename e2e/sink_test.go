package e2e

import (
	"compress/gzip"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// obd are logs of other people, see testdata/README.md.
var obd = []string{"testdata/bts-women/log.csv.gz", "testdata/random-women/log.csv.gz"}

// countCSV counts impressions and clicks by campaign, day, item and position, from the files alone.
func countCSV(t *testing.T, paths []string) string {
	t.Helper()
	type cell struct{ impressions, clicks int }
	cells := map[string]*cell{}
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		rows, err := csv.NewReader(z).ReadAll()
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows[1:] { // number, timestamp, item_id, position, click
			key := strings.Join([]string{filepath.Base(filepath.Dir(path)), r[1][:10], "item-" + r[2], r[3]}, "\t")
			if cells[key] == nil {
				cells[key] = &cell{}
			}
			cells[key].impressions++
			if r[4] == "1" {
				cells[key].clicks++
			}
		}
	}
	var lines []string
	for key, c := range cells {
		lines = append(lines, fmt.Sprintf("%s\t%d\t%d", key, c.impressions, c.clicks))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// ask returns the rows of an answer, sorted.
func ask(t *testing.T, dir, query string) string {
	t.Helper()
	out, stderr, code := ctrloop(t, "sql", "--dir", dir, "--format", "tsv", query)
	if code != 0 {
		t.Fatalf("sql: exit %d: %s", code, stderr)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")[1:] // behind the names
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

const cells = "SELECT campaign, toDate(event_time, 'UTC'), product, position, count(), sum(clicked) FROM labels GROUP BY ALL"

// Public logs twice into one store: every cell equals the count of the CSV both times. Then the care of what is
// there: a backup that is killed is refused, a whole one comes back with its exactly-once state, and a user
// is erased with proof.
func TestPublicLogBackupErase(t *testing.T) {
	needEngine(t)
	dir := filepath.Join(t.TempDir(), "store")
	want := countCSV(t, obd)
	for run := range 2 {
		r := replay(t, append([]string{"--dir", dir}, obd...)...)
		if r.WarehouseRows != 4000 || r.AuditMismatch != 0 || !r.LedgerOK || run == 1 && r.Positive+r.FinalNegative != 0 {
			t.Fatalf("run %d: %+v", run+1, r)
		}
		if got := ask(t, dir, cells); got != want {
			t.Fatalf("run %d: the warehouse's cells are not the CSV's", run+1)
		}
	}

	killed := filepath.Join(t.TempDir(), "killed")
	cmd := exec.Command(binary, "backup", "--dir", dir, killed)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		if _, err := os.Stat(filepath.Join(killed, "data")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the backup does not begin")
		}
	}
	_ = cmd.Process.Signal(syscall.SIGKILL)
	_ = cmd.Wait()
	back := filepath.Join(t.TempDir(), "back")
	if _, stderr, code := ctrloop(t, "restore", "--dir", back, killed); code != 1 || !strings.Contains(stderr, "interrupted") {
		t.Fatalf("a backup that was killed is restored: exit %d: %s", code, stderr)
	}

	whole := filepath.Join(t.TempDir(), "whole")
	for _, args := range [][]string{{"backup", "--dir", dir, whole}, {"restore", "--dir", back, whole}} {
		if _, stderr, code := ctrloop(t, args...); code != 0 {
			t.Fatalf("%v: exit %d: %s", args, code, stderr)
		}
	}
	// Offsets, intents and tokens came back too: the same log again changes nothing.
	if r := replay(t, append([]string{"--dir", back}, obd...)...); r.Positive+r.FinalNegative != 0 || r.WarehouseRows != 4000 ||
		r.AuditMismatch != 0 {
		t.Errorf("after the restore: %+v", r)
	}
	if got := ask(t, back, cells); got != want {
		t.Error("the restored cells are not the CSV's")
	}

	user := ask(t, dir, "SELECT user FROM labels GROUP BY user ORDER BY count() DESC, user LIMIT 1")
	rows := ask(t, dir, "SELECT count() FROM labels WHERE user = "+user)
	stdout, stderr, code := ctrloop(t, "erase", "user", "--dir", dir, "--number", user, "--json")
	var proof struct {
		Tables []struct {
			Table, Query string
			Before       uint64 `json:"rows_before"`
			After        uint64 `json:"rows_after"`
		}
		Topics []struct {
			Topic  string
			GoneBy string `json:"gone_by"`
		}
	}
	if err := json.Unmarshal([]byte(stdout), &proof); code != 0 || err != nil || len(proof.Tables) == 0 {
		t.Fatalf("erase: exit %d, %v: %s%s", code, err, stdout, stderr)
	}
	// The replay's topics keep everything, and the proof says so.
	if len(proof.Topics) != 5 || proof.Topics[0].GoneBy != "" {
		t.Errorf("topics: %+v", proof.Topics)
	}
	for _, p := range proof.Tables {
		if p.Table == "labels" && fmt.Sprint(p.Before) != rows {
			t.Errorf("%d rows erased, the user had %s", p.Before, rows)
		}
		if got := ask(t, dir, p.Query); got != "0" || p.After != 0 {
			t.Errorf("%s: %s", p.Query, got)
		}
	}
	if out, stderr, code := ctrloop(t, "audit", "--dir", dir); code != 0 || !strings.Contains(out, "exact") {
		t.Errorf("audit after the erasure: exit %d: %s%s", code, out, stderr)
	}
}
