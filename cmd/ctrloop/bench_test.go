package main

import (
	"encoding/json"
	"os"
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
	} {
		code, _, stderr := cli(t, append([]string{"bench"}, args...)...)
		if code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%v: exit %d lacks %q: %s", args, code, want, stderr)
		}
	}
}

func TestBenchSink(t *testing.T) {
	code, stdout, stderr := cli(t, "bench", "sink", "--rows", "30000", "--json", "-")
	if code == exitNeedsSetup && os.Getenv("CTRLOOP_TEST_ALLOW_MISSING") == "1" {
		t.Skip("the embedded engine is not set up (CTRLOOP_TEST_ALLOW_MISSING=1)")
	}
	var rep bench.SinkReport
	if err := json.Unmarshal([]byte(stdout), &rep); code != exitOK || err != nil || rep.Wrong() != 0 || rep.Alone.Rows != 30000 || rep.Broker.Inserts == 0 || rep.Alone.PerGoCore() == 0 {
		t.Fatalf("exit %d, %v: %s%s", code, err, stdout, stderr)
	}
	var table strings.Builder
	if err := rep.Print(&table); err != nil || !strings.Contains(table.String(), "rows/s per Go core") {
		t.Errorf("%v:\n%s", err, table.String())
	}
}
