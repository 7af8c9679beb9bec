package e2e

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestDemoSurvivesKill kills a whole quick demo (process group, kill -9) at random moments and resumes it.
// The oracle must then find every label once. Set CTRLOOP_E2E_KILLS to the number of kills and, to replay a
// run, CTRLOOP_E2E_SEED; it takes minutes, so `make test` leaves it out and `make chaos` runs it.
func TestDemoSurvivesKill(t *testing.T) {
	kills, _ := strconv.Atoi(os.Getenv("CTRLOOP_E2E_KILLS"))
	if kills == 0 {
		t.Skip("takes minutes: run `make chaos`, or set CTRLOOP_E2E_KILLS")
	}
	needEngine(t)
	seed, err := strconv.ParseUint(os.Getenv("CTRLOOP_E2E_SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "demo.json")
	var board struct {
		Resumed int
		Stream  struct {
			LabelsExpected int64 `json:"labels_expected"`
			Labels         int64
			Lost           int64
			Duplicate      int64
			Spurious       int64
			LedgerOK       bool `json:"ledger_ok"`
		}
		Warehouse struct {
			AuditMismatch int64 `json:"audit_mismatch"`
		}
		Swap struct {
			WrongVersion int64 `json:"wrong_version"`
		}
	}
	for killed := 0; ; {
		cmd := exec.Command(binary, "demo", "--quick", "--seed", "3", "--dir", dir, "--json", file)
		var log bytes.Buffer
		cmd.Stdout, cmd.Stderr = &log, &log
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		var life <-chan time.Time
		if killed < kills {
			life = time.After(time.Duration(2_000+r.IntN(28_000)) * time.Millisecond)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatalf("after %d kills: %v\n%s", killed, err, log.String())
			}
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(raw, &board); err != nil {
				t.Fatal(err)
			}
			t.Logf("killed %d times: %s", killed, raw)
			s := board.Stream
			if s.LabelsExpected == 0 || s.Labels != s.LabelsExpected || s.Lost+s.Duplicate+s.Spurious != 0 || !s.LedgerOK ||
				board.Warehouse.AuditMismatch != 0 ||
				board.Swap.WrongVersion != 0 {
				t.Errorf("the oracle is not content")
			}
			return
		case <-life:
			killed++
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-done
		}
	}
}
