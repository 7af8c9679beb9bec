package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"ctrloop/internal/warehouse"
)

// A review names what it is about, and why.
func TestReviewsSayWhatAndWhy(t *testing.T) {
	for _, args := range [][]string{
		{"clear", "--product", "mug"},
		{"clear", "--note", "x"},
		{"clear", "--note", "x", "--all", "--product", "mug"},
		{"confirm", "--note", "x"},
		{"reopen", "--note", "x", "--from", "yesterday"},
		{"clear", "--note", "x", "--partition", "-1"},
	} {
		code, _, stderr := cli(t, append([]string{"suspect"}, append(args, "--dir", t.TempDir())...)...)
		if code != exitUsage {
			t.Errorf("suspect %q: exit %d, %s", args, code, stderr)
		}
	}
}

func TestSuspectsAreListed(t *testing.T) {
	var out bytes.Buffer
	usual := 0.05
	cells := []warehouse.SuspectCell{
		{Hour: time.Date(2026, 3, 1, 11, 0, 0, 0, time.UTC), Partition: 3, Product: "mug", Placement: "feed", Labels: 400, Clicked: 1,
			CTR: 0.0025, Usual: &usual, Verdict: "open"},
		{Product: "tea", Verdict: "cleared", By: "ada", Reason: "a new placement"},
	}
	if err := printSuspects(&out, cells, 2); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2026-03-01T11:00:00Z  3 ", "400     0.250 %  5.000 %  open", "-        cleared  ada  a new placement"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	out.Reset()
	if err := printSuspects(&out, nil, 7); err != nil || !strings.Contains(out.String(), "7 hours have one") {
		t.Errorf("%s, %v", out.String(), err)
	}
}
