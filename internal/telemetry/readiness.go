package telemetry

import (
	"slices"
	"strings"
	"sync"
)

// Readiness collects what has to be ready before the process takes traffic. A process without gates is ready.
type Readiness struct {
	mu    sync.Mutex
	gates []*Gate
}

// NewReadiness returns an empty registry.
func NewReadiness() *Readiness { return &Readiness{} }

// Gate is one condition of readiness. It starts closed.
type Gate struct {
	owner  *Readiness
	name   string
	ready  bool
	reason string
}

// Gate adds a condition with the name shown by /readyz, such as "joiner".
func (r *Readiness) Gate(name string) *Gate {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := &Gate{owner: r, name: name, reason: "starting"}
	r.gates = append(r.gates, g)
	return g
}

// Ready opens the gate.
func (g *Gate) Ready() { g.set(true, "") }

// NotReady closes the gate and says why.
func (g *Gate) NotReady(reason string) { g.set(false, reason) }

func (g *Gate) set(ready bool, reason string) {
	g.owner.mu.Lock()
	defer g.owner.mu.Unlock()
	g.ready, g.reason = ready, reason
}

// GateState is the state of one gate, as /readyz shows it.
type GateState struct {
	Name   string `json:"name"`
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"`
}

// State returns whether every gate is open, and each gate by name.
func (r *Readiness) State() (ready bool, gates []GateState) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ready, gates = true, make([]GateState, 0, len(r.gates))
	for _, g := range r.gates {
		ready = ready && g.ready
		gates = append(gates, GateState{Name: g.name, Ready: g.ready, Reason: g.reason})
	}
	slices.SortStableFunc(gates, func(a, b GateState) int { return strings.Compare(a.Name, b.Name) })
	return ready, gates
}
