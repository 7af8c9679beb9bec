package backend

import (
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestAServerThatClosesIdleConnectionsLosesNoRequest sends requests at about the pace at which the server
// closes idle connections, so that many are written to one that is just being closed.
func TestAServerThatClosesIdleConnectionsLosesNoRequest(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "{}")
	}))
	srv.Config.IdleTimeout = 3 * time.Millisecond
	srv.Start()
	defer srv.Close()
	v, err := NewVLLM(DefaultVLLMConfig(srv.URL))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	body := []byte(strings.Repeat("x", 100_000)) // longer than the transport's buffer: it fails in the middle
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 400 {
		resp, err := v.Forward(t.Context(), "", body)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		time.Sleep(2500*time.Microsecond + time.Duration(r.IntN(1000))*time.Microsecond)
	}
}
