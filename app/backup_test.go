package app

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/broker/brokertest"
	"ctrloop/internal/telemetry"
)

// The page that holds the stores still wants the token and an instance that is ready, and lets go with its client.
func TestBackupPage(t *testing.T) {
	dir := t.TempDir()
	broker := brokertest.Start(t, dir)
	a := &App{
		opt:      Options{Dir: dir},
		cfg:      Default(),
		log:      zerolog.Nop(),
		registry: prometheus.NewRegistry(),
		ready:    telemetry.NewReadiness(),
		broker:   broker,
		actors:   newActors(zerolog.Nop()),
	}
	a.cfg.Auth.Required = true
	a.begun = a.ready.Gate("start")
	if err := a.openDoor(t.Context()); err != nil {
		t.Fatal(err)
	}
	secret := a.addresses.Token
	if err := a.startAdmin(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(a.actors.stop)
	defer stop()
	ask := func(ctx context.Context, token string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+a.addresses.Admin+BackupPath, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	for token, want := range map[string]int{"": http.StatusUnauthorized, secret[1:]: http.StatusUnauthorized,
		secret: http.StatusServiceUnavailable} {
		if got := ask(t.Context(), token).StatusCode; got != want {
			t.Errorf("token %q before the instance is ready: %d, want %d", token, got, want)
		}
	}
	a.begun.Healthy()
	refill := filepath.Join(dir, RefillFile)
	if err := os.WriteFile(refill, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ask(t.Context(), secret).StatusCode; got != http.StatusServiceUnavailable {
		t.Errorf("while the warehouse is being filled: %d", got)
	}
	if err := os.Remove(refill); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var f Frozen
	if err := json.NewDecoder(ask(ctx, secret).Body).Decode(&f); err != nil || f.Broker == nil || f.Engine != nil || f.Refill != nil {
		t.Fatalf("%+v, %v: want the broker and nothing else", f, err)
	}
	if _, err := os.Stat(filepath.Join(f.Broker.Links, "data", "meta.properties")); err != nil {
		t.Error(err)
	}
	cancel()
	stop() // returns when no request is in progress any more
	if _, err := os.Stat(f.Broker.Links); !os.IsNotExist(err) {
		t.Errorf("the links are still there: %v", err)
	}
}
