package gateway

import (
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/access"
	"ctrloop/internal/httpapi"
	"ctrloop/serving/backend"
	"ctrloop/serving/backend/vllmfake"
)

// A model server takes turns by client, and behind the gateway it can know them from the gateway alone: each token is one, and
// nobody can say to be another.
func TestTheModelServerIsToldWhoAsks(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	s := newStage(t, 1, 8, vllmfake.Config{OnChat: func(r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.Header.Get("X-Forwarded-For"))
	}}, nil)
	file := filepath.Join(t.TempDir(), access.TokensFile)
	secret, ids := map[string]string{}, map[string]string{}
	for _, name := range []string{"shop", "crawler"} {
		key, token, err := access.Create(file, name, []access.Scope{access.AdsDecide}, time.Time{}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		secret[name], ids[name] = key, token.ID
	}
	store, err := access.Open(file, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	kit, err := httpapi.New(httpapi.DefaultLimits(), httpapi.DefaultAuth(), zerolog.Nop(), prometheus.NewRegistry(), httpapi.NewTokens(store))
	if err != nil {
		t.Fatal(err)
	}
	srv, err := kit.Listen("api", "127.0.0.1:0", httpapi.Route{
		Method: http.MethodPost, Path: "/v1/chat/completions", Scope: access.AdsDecide, Handle: s.gw.ServeHTTP,
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Run(t.Context()) }()
	t.Cleanup(func() { <-done })
	url := "http://" + srv.Addr() + "/v1/chat/completions"
	for _, name := range []string{"shop", "crawler", ""} {
		headers := []string{"X-Forwarded-For", "10.1.2.3"} // a client's own word is not passed on
		if name != "" {
			headers = append(headers, "Authorization", "Bearer "+secret[name])
		}
		if resp, got := post(t, url, body("prompt", ""), headers...); resp.StatusCode != http.StatusOK {
			t.Fatalf("%q: %d %s", name, resp.StatusCode, got)
		}
	}
	own := backend.ChatRequest{Model: "prompt",
		Messages: []backend.Message{{Role: "user", Content: []backend.Part{{Type: "text", Text: "x"}}}}}
	if _, _, err := s.gw.Chat(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff([]string{ids["shop"], ids["crawler"], "127.0.0.1", "ctrloop"}, seen); diff != "" {
		t.Errorf("clients (-want +got):\n%s", diff)
	}
	http.DefaultClient.CloseIdleConnections()
}
