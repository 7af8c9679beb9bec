package telemetry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
)

// AdminConfig configures the admin listener.
type AdminConfig struct {
	// Address to listen on, host:port; port 0 takes a free one. Empty turns the listener off.
	Address string `yaml:"address"`
	// AllowRemote permits an address beyond loopback. The listener has no authentication and shows profiles
	// and the configuration (without secrets): put a network policy in front of it.
	AllowRemote bool `yaml:"allow_remote"`
}

// DefaultAdminConfig listens on a free loopback port.
func DefaultAdminConfig() AdminConfig { return AdminConfig{Address: "127.0.0.1:0"} }

// Validate returns every problem of the configuration.
func (c AdminConfig) Validate() error {
	if c.Address == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(c.Address)
	if err != nil {
		return fmt.Errorf("address: %q is not host:port: %w", c.Address, err)
	}
	if !c.AllowRemote && !isLoopback(host) {
		return fmt.Errorf("address: %q is reachable from other machines and the admin listener has no authentication; "+
			"use 127.0.0.1, or set allow_remote: true behind a network policy", c.Address)
	}
	return nil
}

// isLoopback reports whether a host, as written in an address or a Host header, can only mean this machine.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Admin is the listener for operators: /metrics, /healthz, /readyz, /configz and /debug/pprof.
type Admin struct {
	cfg      AdminConfig
	listener net.Listener
	mux      *http.ServeMux
	handler  http.Handler
	log      zerolog.Logger
}

// shutdownGrace is how long a stopping admin listener waits for requests in progress; profiles take longer and
// are cut.
const shutdownGrace = 2 * time.Second

// NewAdmin opens the listener. configz returns the effective configuration as YAML, without secrets; it may be
// nil. Serving starts with Run.
func NewAdmin(
	cfg AdminConfig,
	metrics prometheus.Gatherer,
	ready *Readiness,
	configz func() ([]byte, error),
	log zerolog.Logger,
) (*Admin, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("admin listener: %w", err)
	}
	mux := adminPages(metrics, ready, configz)
	a := &Admin{cfg: cfg, log: log, mux: mux, handler: mux}
	if !cfg.AllowRemote {
		a.handler = localHostOnly(mux)
	}
	if cfg.Address == "" {
		return a, nil
	}
	listener, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("admin listener: %w", err)
	}
	a.listener = listener
	return a, nil
}

// Addr is the address listened on, host:port, or "" where the listener is off.
func (a *Admin) Addr() string {
	if a.listener == nil {
		return ""
	}
	return a.listener.Addr().String()
}

// Handler returns the admin pages.
func (a *Admin) Handler() http.Handler { return a.handler }

// Handle adds a page. The listener has no authentication: a page that does more than show must ask for one itself.
func (a *Admin) Handle(pattern string, page http.HandlerFunc) { a.mux.HandleFunc(pattern, page) }

// Run serves until ctx is done.
func (a *Admin) Run(ctx context.Context) error {
	if a.listener == nil {
		<-ctx.Done()
		return nil
	}
	server := &http.Server{Handler: a.handler, ReadHeaderTimeout: 5 * time.Second}
	stopped := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		if server.Shutdown(grace) != nil {
			_ = server.Close() // cuts what did not end in time
		}
	})()
	a.log.Info().Str("address", a.Addr()).Msg("admin listener")
	if err := server.Serve(a.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("admin listener: %w", err)
	}
	<-stopped
	return nil
}

func adminPages(metrics prometheus.Gatherer, ready *Readiness, configz func() ([]byte, error)) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		ok, gates := ready.State()
		w.Header().Set("Content-Type", "application/json")
		if !ok {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"ready": ok, "gates": gates})
	})
	mux.HandleFunc("GET /configz", func(w http.ResponseWriter, _ *http.Request) {
		if configz == nil {
			http.Error(w, "this process has no configuration to show", http.StatusNotFound)
			return
		}
		text, err := configz()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/yaml")
		_, _ = w.Write(text)
	})
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// localHostOnly refuses requests whose Host header names another machine: a web page that resolves its own
// name to 127.0.0.1 (DNS rebinding) would otherwise read the pages through the user's browser.
func localHostOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if !isLoopback(host) {
			http.Error(w, fmt.Sprintf("host %q is not this machine", host), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
