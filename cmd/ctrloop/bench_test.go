package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ctrloop/bench"
)

func TestBenchJoin(t *testing.T) {
	t.Setenv(asMain, "1") // the state at scale is measured in a process of its own
	dir := t.TempDir()
	args := []string{
		"bench",
		"join",
		"--quick",
		"--impressions",
		"400000",
		"--open",
		"400000",
		"--only",
		"loop,open,embedded",
		"--dir",
		dir,
		"--profile",
		t.TempDir(),
	}
	code, stdout, stderr := cli(t, append(args, "--json", "-")...)
	var rep bench.Report
	if err := json.Unmarshal([]byte(stdout), &rep); code != exitOK || err != nil || rep.Loop == nil || rep.Embedded == nil ||
		rep.Kafka != nil ||
		rep.Live != nil ||
		rep.Wrong() != 0 {
		t.Fatalf("exit %d, %v: %s%s", code, err, stdout, stderr)
	}
	// The log of 10,000 open impressions is made of a few more; one in twenty is clicked and not open.
	if o := rep.Open; o == nil || o.OpenImpressions < 9_500 || o.OpenImpressions > 10_500 || !o.Balanced || o.Stored == 0 || o.PeakRSS == 0 ||
		o.Restart.Events == 0 {
		t.Errorf("%+v", o)
	}
	var targets struct{ Targets []bench.Target }
	if err := json.Unmarshal([]byte(stdout), &targets); err != nil || len(targets.Targets) != 9 {
		t.Errorf("%d targets, %v", len(targets.Targets), err)
	}
	var table strings.Builder
	if err := rep.Print(&table); err != nil || !strings.Contains(table.String(), "events/s per core") ||
		!strings.Contains(table.String(), "restart from segments, 0.0") ||
		strings.Contains(table.String(), "real broker") {
		t.Errorf("%v:\n%s", err, table.String())
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestBenchSaysWhatIsWrong(t *testing.T) {
	for want, args := range map[string][]string{
		"--window 1s":            {"join", "--window", "1s"},
		"--impressions -1":       {"join", "--impressions=-1"},
		"--open 0":               {"join", "--open", "0"},
		"--only must be one of":  {"join", "--only", "loops"},
		"--rate 0":               {"join", "--rate", "0"},
		"name the broker":        {"join", "--only", "kafka"},
		"make bench-peers":       {"peers", "--streams", t.TempDir()},
		"missing flags: --strea": {"peers"},
		"--runs 0":               {"experiments", "--runs", "0"},
		"no part \"everything\"": {"experiments", "--only", "everything"},
	} {
		code, _, stderr := cli(t, append([]string{"bench"}, args...)...)
		if code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%v: exit %d lacks %q: %s", args, code, want, stderr)
		}
	}
}

func TestBenchExperiments(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.json")
	code, stdout, stderr := cli(t, "bench", "experiments", "--runs", "40", "--only", "aa", "--json", file)
	if code != exitOK || !strings.Contains(stdout, "| sequence, a look at every batch") {
		t.Fatalf("exit %d: %s%s", code, stdout, stderr)
	}
	raw, err := os.ReadFile(file)
	var rep experimentsReport
	if err := errors.Join(err, json.Unmarshal(raw, &rep)); err != nil || len(rep.Tables) != 1 || len(rep.Broken) != 0 ||
		rep.Options.Runs != 40 {
		t.Errorf("%v: %s", err, raw)
	}
	// One run shows nothing, so that the z-tests cannot be shown to fail: the command must say so.
	code, _, stderr = cli(t, "bench", "experiments", "--runs", "1", "--seed", "2", "--only", "aa", "--json", "-")
	if code != exitFailed || !strings.Contains(stderr, "does not hold") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

func TestBenchSink(t *testing.T) {
	code, stdout, stderr := cli(t, "bench", "sink", "--rows", "30000", "--json", "-")
	if code == exitNeedsSetup && os.Getenv("CTRLOOP_TEST_ALLOW_MISSING") == "1" {
		t.Skip("the embedded engine is not set up (CTRLOOP_TEST_ALLOW_MISSING=1)")
	}
	var rep bench.SinkReport
	if err := json.Unmarshal([]byte(stdout), &rep); code != exitOK || err != nil || rep.Wrong() != 0 || rep.Alone.Rows != 30000 ||
		rep.Broker.Inserts == 0 ||
		rep.Alone.PerGoCore() == 0 {
		t.Fatalf("exit %d, %v: %s%s", code, err, stdout, stderr)
	}
	var table strings.Builder
	if err := rep.Print(&table); err != nil || !strings.Contains(table.String(), "rows/s per Go core") {
		t.Errorf("%v:\n%s", err, table.String())
	}
}
