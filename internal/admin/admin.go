// Package admin has the pages for operators: /metrics, /healthz, /readyz, /configz and /debug/pprof.
package admin

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ctrloop/internal/access"
	"ctrloop/internal/httpapi"
	"ctrloop/internal/telemetry"
)

// Config of the listener for operators.
type Config struct {
	// Address to listen on, host:port; port 0 takes a free one. Empty turns the listener off. Beyond loopback it wants
	// auth.required; /healthz and the yes or no of /readyz need no token then, so that probes can ask.
	Address string `yaml:"address"`
}

// Default listens on a free loopback port.
func Default() Config { return Config{Address: "127.0.0.1:0"} }

// Validate returns every problem of the configuration.
func (c Config) Validate() error {
	if c.Address == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return fmt.Errorf("address: %q is not host:port", c.Address)
	}
	return nil
}

// ReadyPath tells whether the process takes traffic: 200 or 503.
const ReadyPath = "/readyz"

// Ready is the answer of ReadyPath.
type Ready struct {
	Ready bool                  `json:"ready"`
	Gates []telemetry.GateState `json:"gates,omitempty"` // for those who may read
}

// Routes are the pages. configz returns the effective configuration as YAML, without secrets; it may be nil.
func Routes(metrics prometheus.Gatherer, ready *telemetry.Readiness, configz func() ([]byte, error)) []httpapi.Route {
	get := func(path string, scope access.Scope, page http.HandlerFunc) httpapi.Route {
		return httpapi.Route{Method: http.MethodGet, Path: path, Scope: scope, Handle: page}
	}
	return []httpapi.Route{
		get("/metrics", access.Read, httpapi.Handler(promhttp.HandlerFor(metrics, promhttp.HandlerOpts{EnableOpenMetrics: true}))),
		get("/healthz", access.Public, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }),
		get(ReadyPath, access.Public, func(w http.ResponseWriter, r *http.Request) { showReady(w, r, ready) }),
		get("/configz", access.Admin, func(w http.ResponseWriter, _ *http.Request) { showConfig(w, configz) }),
		get("/debug/pprof/", access.Admin, pprof.Index),
		get("/debug/pprof/cmdline", access.Admin, pprof.Cmdline),
		get("/debug/pprof/profile", access.Admin, pprof.Profile),
		get("/debug/pprof/symbol", access.Admin, pprof.Symbol),
		get("/debug/pprof/trace", access.Admin, pprof.Trace),
	}
}

func showReady(w http.ResponseWriter, r *http.Request, ready *telemetry.Readiness) {
	var answer Ready
	answer.Ready, answer.Gates = ready.State()
	if !httpapi.May(r, access.Read) { // reasons name addresses
		answer.Gates = nil
	}
	status := http.StatusOK
	if !answer.Ready {
		status = http.StatusServiceUnavailable
	}
	httpapi.Reply(w, status, answer)
}

var errNoConfig = errors.New("this process has no configuration to show")

func showConfig(w http.ResponseWriter, configz func() ([]byte, error)) {
	if configz == nil {
		httpapi.Fail(w, errNoConfig)
		return
	}
	text, err := configz()
	if err != nil {
		httpapi.Fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(text)
}
