package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ctrloop/cmd/ctrloop/bench"
)

func TestBenchJoin(t *testing.T) {
	args := []string{"bench", "join", "--quick", "--impressions", "400000", "--only", "loop,embedded"}
	code, stdout, stderr := cli(t, append(args, "--json", "-")...)
	var rep bench.Report
	if err := json.Unmarshal([]byte(stdout), &rep); code != exitOK || err != nil || rep.Loop == nil || rep.Embedded == nil || rep.Kafka != nil || rep.Wrong() != 0 {
		t.Fatalf("exit %d, %v: %s%s", code, err, stdout, stderr)
	}
	var table strings.Builder
	if err := rep.Print(&table); err != nil || !strings.Contains(table.String(), "events/s per core") || strings.Contains(table.String(), "real broker") {
		t.Errorf("%v:\n%s", err, table.String())
	}
}

func TestBenchSaysWhatIsWrong(t *testing.T) {
	for want, args := range map[string][]string{
		"--window 1s":            {"join", "--window", "1s"},
		"--impressions 0":        {"join", "--impressions", "0"},
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
	if err := errors.Join(err, json.Unmarshal(raw, &rep)); err != nil || len(rep.Tables) != 1 || len(rep.Broken) != 0 || rep.Options.Runs != 40 {
		t.Errorf("%v: %s", err, raw)
	}
	// One run shows nothing, so that the z-tests cannot be shown to fail: the command must say so.
	code, _, stderr = cli(t, "bench", "experiments", "--runs", "1", "--seed", "2", "--only", "aa", "--json", "-")
	if code != exitFailed || !strings.Contains(stderr, "does not hold") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
