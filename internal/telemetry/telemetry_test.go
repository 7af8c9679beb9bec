package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
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

func TestAdminRefusesToListenBeyondLoopback(t *testing.T) {
	for address, ok := range map[string]bool{
		"": true, "127.0.0.1:0": true, "localhost:9": true, "[::1]:0": true,
		"0.0.0.0:0": false, ":0": false, "10.0.0.1:80": false, "example.org:80": false, "127.0.0.1": false,
	} {
		if err := (AdminConfig{Address: address}).Validate(); (err == nil) != ok {
			t.Errorf("%q: %v, want allowed=%v", address, err, ok)
		}
	}
	if err := (AdminConfig{Address: "0.0.0.0:9090", AllowRemote: true}).Validate(); err != nil {
		t.Errorf("allowed explicitly: %v", err)
	}
}

func TestAdminPages(t *testing.T) {
	ready := NewReadiness()
	gate := ready.Gate("joiner")
	admin, err := NewAdmin(AdminConfig{}, NewRegistry("v1"), ready,
		func() ([]byte, error) { return []byte("a: 1\n"), nil }, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	get := func(host, path string) (int, string) {
		t.Helper()
		req := httptest.NewRequest(http.MethodGet, path, nil)
		req.Host = host
		rec := httptest.NewRecorder()
		admin.Handler().ServeHTTP(rec, req)
		return rec.Code, rec.Body.String()
	}
	if code, body := get("localhost:1", "/readyz"); code != 503 || !strings.Contains(body, `"reason":"starting"`) {
		t.Errorf("readyz before: %d %s", code, body)
	}
	gate.Ready()
	for path, want := range map[string]string{
		"/readyz":  `{"gates":[{"name":"joiner","ready":true}],"ready":true}`,
		"/healthz": "ok", "/configz": "a: 1", "/metrics": `ctrloop_build_info{go=`, "/debug/pprof/": "goroutine",
	} {
		if code, body := get("127.0.0.1:1", path); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d, no %q in %.200s", path, code, want, body)
		}
	}
	gate.NotReady("broker gone")
	if code, body := get("[::1]:1", "/readyz"); code != 503 || !strings.Contains(body, "broker gone") {
		t.Errorf("readyz after: %d %s", code, body)
	}
	if code, _ := get("evil.example:1", "/configz"); code != 403 {
		t.Errorf("a foreign Host header got %d", code)
	}
}

func TestAdminRunStopsWithItsContext(t *testing.T) {
	admin, err := NewAdmin(DefaultAdminConfig(), NewRegistry("v1"), NewReadiness(), nil, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- admin.Run(ctx) }()
	res, err := http.Get("http://" + admin.Addr() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
	if _, err := http.Get("http://" + admin.Addr() + "/healthz"); err == nil {
		t.Error("still listening after Run returned")
	}
}
