package telemetry

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// Readiness collects what has to work before the process takes traffic, and while it does. A process without gates has
// not begun and is not ready.
type Readiness struct {
	mu    sync.Mutex
	gates []*Gate
	now   func() time.Time
}

// NewReadiness returns an empty registry.
func NewReadiness() *Readiness { return &Readiness{now: time.Now} }

// Gate is one part's word on whether it can do its work. It starts closed. A nil gate takes every word and keeps none, so
// that a part needs not know whether anybody listens. Safe for concurrent use.
type Gate struct {
	owner  *Readiness
	name   string
	ready  bool
	reason string
	since  time.Time
}

// Gate adds a part with the name shown by /readyz, such as "joiner".
func (r *Readiness) Gate(name string) *Gate {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := &Gate{owner: r, name: name, reason: "starting", since: r.now()}
	r.gates = append(r.gates, g)
	return g
}

// Healthy says that the part does its work.
func (g *Gate) Healthy() { g.set(true, "") }

// Unhealthy says that it cannot, and why.
func (g *Gate) Unhealthy(reason string) { g.set(false, reason) }

// Report is Healthy without an error, and Unhealthy with one.
func (g *Gate) Report(err error) {
	if err != nil {
		g.Unhealthy(err.Error())
		return
	}
	g.Healthy()
}

// ReportText is Unhealthy with a trouble, and Healthy with an empty one.
func (g *Gate) ReportText(trouble string) { g.set(trouble == "", trouble) }

func (g *Gate) set(ready bool, reason string) {
	if g == nil {
		return
	}
	g.owner.mu.Lock()
	defer g.owner.mu.Unlock()
	if g.ready != ready {
		g.since = g.owner.now()
	}
	g.ready, g.reason = ready, reason
}

// Ready is the last word; true for nil.
func (g *Gate) Ready() bool {
	if g == nil {
		return true
	}
	g.owner.mu.Lock()
	defer g.owner.mu.Unlock()
	return g.ready
}

// GateState is the state of one gate, as /readyz shows it.
type GateState struct {
	Name   string    `json:"name"`
	Ready  bool      `json:"ready"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since"` // of being ready or not
}

// State returns whether every gate is open, and each gate by name.
func (r *Readiness) State() (ready bool, gates []GateState) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ready, gates = len(r.gates) > 0, make([]GateState, 0, len(r.gates))
	for _, g := range r.gates {
		ready = ready && g.ready
		gates = append(gates, GateState{g.name, g.ready, g.reason, g.since})
	}
	slices.SortStableFunc(gates, func(a, b GateState) int { return strings.Compare(a.Name, b.Name) })
	return ready, gates
}
