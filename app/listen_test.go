package app

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/ingest"
	"ctrloop/internal/access"
	"ctrloop/internal/admin"
	"ctrloop/internal/httpapi"
	"ctrloop/internal/telemetry"
	"ctrloop/serving"
	"ctrloop/serving/console"
	"ctrloop/serving/experiment"
)

var update = flag.Bool("update", false, "write golden files")

// TestRoutes lists every call of every listener with the scope that it wants. Somebody must have looked at each: a route
// that is new or opens wider changes testdata/routes.txt. (A route without a scope stops a listener: httpapi.)
func TestRoutes(t *testing.T) {
	a := &App{who: httpapi.NewTokens(nil), registry: prometheus.NewRegistry(), ready: telemetry.NewReadiness()}
	a.serving = &servingParts{service: &serving.Service{}, experiment: &experiment.Service{}}
	var b strings.Builder
	for _, l := range []struct {
		name   string
		routes []httpapi.Route
	}{
		{"api", a.apiRoutes(&console.Service{})}, {"edge", (&ingest.Edge{}).Routes()}, {"admin", a.adminRoutes()},
	} {
		b.WriteString(l.name + "\n")
		for _, r := range httpapi.Sorted(l.routes) {
			b.WriteString("  " + r.String() + "\n")
			if r.Scope == "" || r.Method != http.MethodGet && r.Scope == access.Read {
				t.Errorf("%v: a call that changes something wants more than read", r)
			}
		}
	}
	file := filepath.Join("testdata", "routes.txt")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("routes (-want +got), -update writes them:\n%s", diff)
	}
}

// With auth.required every call refuses who brings no token, and leads browsers to the login page; what is public alone does
// not, and of that only pictures stand under a path that also has data.
func TestStrangersAreRefused(t *testing.T) {
	a := &App{
		opt: Options{Dir: t.TempDir()}, cfg: Default(), log: zerolog.Nop(), registry: prometheus.NewRegistry(),
		ready: telemetry.NewReadiness(), actors: newActors(zerolog.Nop()),
	}
	t.Cleanup(a.actors.stop)
	a.cfg.Auth.Required = true
	if err := a.openDoor(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.serving = &servingParts{service: &serving.Service{}, experiment: &experiment.Service{}}
	routes := slices.Concat(a.apiRoutes(&console.Service{}), (&ingest.Edge{}).Routes(), a.adminRoutes())
	address, err := a.listen("all", "127.0.0.1:0", routes)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for _, r := range routes {
		if r.Scope == access.Public && r.Path != "/v1/creatives/{id}" {
			continue
		}
		path := strings.NewReplacer("{$}", "", "{id}", "x", "{logical}", "x").Replace(r.Path)
		req, err := http.NewRequestWithContext(t.Context(), r.Method, "http://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%v: %d", r, resp.StatusCode)
		}
		refused++
	}
	if refused < 40 {
		t.Errorf("only %d routes were asked", refused)
	}
}

// V15: the admin listener answers before anything else has begun, and says so.
func TestReadinessDuringAStart(t *testing.T) {
	a := &App{
		opt: Options{Dir: t.TempDir(), Targets: []Target{Serving, Sink}}, cfg: Default(), log: zerolog.Nop(),
		registry: prometheus.NewRegistry(), ready: telemetry.NewReadiness(), actors: newActors(zerolog.Nop()),
		gates: map[Target]*telemetry.Gate{},
	}
	t.Cleanup(a.actors.stop)
	a.openGates()
	if err := errors.Join(a.openDoor(t.Context()), a.startAdmin(t.Context())); err != nil {
		t.Fatal(err)
	}
	resp, err := a.Client(time.Minute).Get("http://" + a.addresses.Admin + admin.ReadyPath)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var got admin.Ready
	if err := json.Unmarshal(raw, &got); err != nil || resp.StatusCode != 503 || got.Ready {
		t.Fatalf("%d %s, %v", resp.StatusCode, raw, err)
	}
	waits := map[string]bool{}
	for _, g := range got.Gates {
		waits[g.Name] = !g.Ready
	}
	for _, name := range []string{"start", string(Serving), string(Sink)} {
		if !waits[name] {
			t.Errorf("%s is not waited for: %s", name, raw)
		}
	}
}

// R4: readiness follows what a part can do, in both directions; one that does not answer is not ready.
func TestReadinessFollowsItsParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &App{ready: telemetry.NewReadiness()}
		var broken error
		hangs := false
		a.check("warehouse", func(ctx context.Context) error {
			if hangs {
				<-ctx.Done()
				return ctx.Err()
			}
			return broken
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.watch(ctx) }()
		look := func() (bool, string) {
			time.Sleep(3 * checkEvery)
			synctest.Wait()
			ready, gates := a.ready.State()
			return ready, gates[0].Reason
		}
		if ready, why := look(); !ready {
			t.Errorf("not ready: %s", why)
		}
		broken = errors.New("disk full")
		if ready, why := look(); ready || why != "disk full" {
			t.Errorf("ready %v, %q", ready, why)
		}
		broken, hangs = nil, true
		if ready, why := look(); ready || !strings.Contains(why, "does not answer") {
			t.Errorf("ready %v, %q", ready, why)
		}
		hangs = false
		if ready, why := look(); !ready {
			t.Errorf("not ready again: %s", why)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// Listeners beyond loopback want authentication; the configuration says so before anything starts.
func TestConfigBeyondLoopback(t *testing.T) {
	for _, set := range []func(*Config){
		func(c *Config) { c.Listen.API = "0.0.0.0:8080" },
		func(c *Config) { c.Listen.Edge = ":8081" },
		func(c *Config) { c.Admin.Address = "10.0.0.1:9464" },
	} {
		c := Default()
		set(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "auth.required: true") {
			t.Errorf("%+v: %v", c.Listen, err)
		}
		c.Auth.Required = true
		if err := c.Validate(); err != nil {
			t.Errorf("with authentication: %v", err)
		}
	}
	c := Default()
	c.Admin.Address = ""
	if err := c.Validate(); err != nil {
		t.Errorf("no admin listener: %v", err)
	}
}
