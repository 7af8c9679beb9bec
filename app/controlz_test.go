package app

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ctrloop/internal/telemetry"
	"ctrloop/schemas/control"
)

// The page shows the copy of this process, and a process that has none says so.
func TestControlPage(t *testing.T) {
	a, err := Start(t.Context(), inMemory(t, Default(), Joiner))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Stop)
	model := control.Model{Version: "prompt-a", Logical: "prompt", Artifact: "a"}
	if err := a.append(t.Context(), "register", control.ModelRegistered, control.ModelEntity("prompt-a"), "", model); err != nil {
		t.Fatal(err)
	}
	resp, err := a.Client(time.Minute).Get("http://" + a.Addresses().Admin + ControlPath)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got ControlView
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	want, err := NewControlView(a.Control())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" || got.Offset != 0 {
		t.Errorf("offset %d (-want +got):\n%s", got.Offset, diff)
	}
	empty, err := NewControlView(control.NewState())
	if err != nil || empty.Digest == got.Digest {
		t.Errorf("another state has the same digest, %v", err)
	}

	without := &App{ready: telemetry.NewReadiness()}
	without.begun = without.ready.Gate("start")
	for _, want := range []int{http.StatusServiceUnavailable, http.StatusNotFound} {
		w := httptest.NewRecorder()
		without.controlz(w, httptest.NewRequest(http.MethodGet, ControlPath, nil))
		if w.Code != want {
			t.Errorf("%d, want %d: %s", w.Code, want, w.Body)
		}
		without.begun.Healthy()
	}
}
