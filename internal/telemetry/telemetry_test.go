package telemetry

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
)

func TestLogFormats(t *testing.T) {
	var buf bytes.Buffer
	quiet := NewLogger(LogConfig{Level: "warn", Format: "auto"}, &buf)
	quiet.Info().Msg("hidden")
	if buf.Len() != 0 {
		t.Errorf("info was written at level warn: %q", buf.String())
	}
	machine := NewLogger(LogConfig{Level: "info", Format: "auto"}, &buf)
	machine.Info().Str("k", "v").Msg("shown")
	var line map[string]string
	if err := json.Unmarshal(buf.Bytes(), &line); err != nil {
		t.Fatalf("auto on a buffer must be JSON: %v in %q", err, buf.String())
	}
	if _, err := time.Parse(time.RFC3339Nano, line["time"]); err != nil || !strings.HasSuffix(line["time"], "Z") {
		t.Errorf("time %q is not RFC 3339 in UTC: %v", line["time"], err)
	}
	delete(line, "time")
	if diff := cmp.Diff(map[string]string{"level": "info", "k": "v", "message": "shown"}, line); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
	buf.Reset()
	people := NewLogger(LogConfig{Format: "console"}, &buf)
	people.Info().Str("k", "v").Msg("shown")
	if got := buf.String(); !strings.Contains(got, "INF shown k=v") {
		t.Errorf("console line %q", got)
	}
}

func TestThrottleCountsWhatItLeavesOut(t *testing.T) {
	var buf bytes.Buffer
	now := time.Unix(0, 0)
	throttle := NewThrottle(NewLogger(LogConfig{Format: "json"}, &buf), time.Minute, func() time.Time { return now })
	for range 5 {
		throttle.Event(zerolog.ErrorLevel, "produce").Msg("produce failed")
	}
	throttle.Event(zerolog.ErrorLevel, "fetch").Msg("fetch failed")
	now = now.Add(time.Minute)
	throttle.Event(zerolog.ErrorLevel, "produce").Msg("produce failed")
	throttle.Event(zerolog.ErrorLevel, "produce").Msg("produce failed")

	var got []string
	for line := range strings.Lines(buf.String()) {
		var fields struct {
			Message  string `json:"message"`
			Repeated int    `json:"repeated"`
		}
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatal(err)
		}
		got = append(got, fields.Message+strings.Repeat("+", fields.Repeated))
	}
	want := []string{"produce failed", "fetch failed", "produce failed++++"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestThrottleBoundsItsKeys(t *testing.T) {
	throttle := NewThrottle(zerolog.New(io.Discard), time.Minute, time.Now)
	for i := range 10 * maxThrottleKeys {
		throttle.Event(zerolog.InfoLevel, strings.Repeat("x", i+1)).Msg("")
	}
	if got := len(throttle.keys); got > maxThrottleKeys+1 {
		t.Errorf("%d keys are held", got)
	}
}

// A part's last word counts; a part without a gate may speak too.
func TestReadiness(t *testing.T) {
	now := time.Unix(100, 0)
	r := NewReadiness()
	r.now = func() time.Time { return now }
	if ready, gates := r.State(); ready || len(gates) != 0 {
		t.Errorf("before anything has begun: %v %v", ready, gates)
	}
	edge, sink := r.Gate("edge"), r.Gate("sink")
	edge.Healthy()
	if ready, _ := r.State(); ready {
		t.Error("ready while a part starts")
	}
	now = now.Add(time.Second)
	sink.Report(nil)
	if ready, _ := r.State(); !ready {
		t.Error("not ready when all parts are")
	}
	now = now.Add(time.Second)
	sink.Report(errors.New("the warehouse is full"))
	now = now.Add(time.Second)
	sink.ReportText("the warehouse is full still")
	ready, gates := r.State()
	want := []GateState{
		{Name: "edge", Ready: true, Since: time.Unix(100, 0)},
		{Name: "sink", Reason: "the warehouse is full still", Since: time.Unix(102, 0)},
	}
	if diff := cmp.Diff(want, gates); ready || diff != "" {
		t.Errorf("ready %v, gates (-want +got):\n%s", ready, diff)
	}
	var none *Gate
	none.Healthy()
	none.Unhealthy("nobody listens")
	if !none.Ready() {
		t.Error("no gate is closed")
	}
}
