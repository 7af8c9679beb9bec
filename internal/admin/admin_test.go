package admin

import (
	"net/http/httptest"
	"strings"
	"testing"

	"ctrloop/internal/httpapi"
	"ctrloop/internal/telemetry"
)

// Readiness is false before anything has said that it is ready, while something starts, and again when a part cannot work.
func TestPages(t *testing.T) {
	ready := telemetry.NewReadiness()
	h := httpapi.Open(Routes(telemetry.NewRegistry("v1"), ready, func() ([]byte, error) { return []byte("a: 1\n"), nil })...)
	get := func(path string) (int, string) {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code, w.Body.String()
	}
	if code, body := get("/readyz"); code != 503 || body != `{"ready":false}`+"\n" {
		t.Errorf("readyz of a process that has not begun: %d %s", code, body)
	}
	gate := ready.Gate("joiner")
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, `"reason":"starting"`) {
		t.Errorf("readyz before: %d %s", code, body)
	}
	gate.Healthy()
	for path, want := range map[string]string{
		"/readyz":  `{"ready":true,"gates":[{"name":"joiner","ready":true`,
		"/healthz": "ok", "/configz": "a: 1", "/metrics": `ctrloop_build_info{go=`, "/debug/pprof/": "goroutine",
	} {
		if code, body := get(path); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d, no %q in %.200s", path, code, want, body)
		}
	}
	gate.Unhealthy("broker gone")
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, "broker gone") {
		t.Errorf("readyz after: %d %s", code, body)
	}
}

func TestConfigAddress(t *testing.T) {
	for address, ok := range map[string]bool{"": true, "127.0.0.1:0": true, "127.0.0.1": false} {
		if err := (Config{Address: address}).Validate(); (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
	}
}
