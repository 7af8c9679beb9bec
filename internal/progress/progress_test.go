package progress

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestPlainLinesHaveRateAndTimeLeft(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(1000, 0)
	b := Start(&out, "replay", "events")
	b.now, b.start = func() time.Time { return now }, now
	now = now.Add(10 * time.Second)
	b.Set(5000, 0.25, "")
	now = now.Add(time.Second)
	b.Set(5500, 0.28, "") // too soon for another line
	now = now.Add(29 * time.Second)
	b.Done(20000, "")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines: %q", len(lines), lines)
	}
	for _, want := range []string{"25 %", "5000 events", "500/s", "about 30s left"} {
		if !strings.Contains(lines[0], want) {
			t.Errorf("%q lacks %q", lines[0], want)
		}
	}
	for _, want := range []string{"100 %", "20000 events", "500/s", "40s"} {
		if !strings.Contains(lines[1], want) {
			t.Errorf("%q lacks %q", lines[1], want)
		}
	}
}
