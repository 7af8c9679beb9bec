// Package telemetrytest shows tests what a part tells of its work.
package telemetrytest

import (
	"testing"
	"time"

	"ctrloop/internal/telemetry"
)

// Gate is the readiness of one part.
type Gate struct{ r *telemetry.Readiness }

// NewGate makes a gate, and the work that moves it. explain puts failures in words; it may be nil.
func NewGate(explain func(error) error) (Gate, *telemetry.Work) {
	g := Gate{telemetry.NewReadiness()}
	return g, telemetry.NewWork(g.r.Gate("part"), explain)
}

// Await waits until the gate is open, or closed, for ten minutes at most, and returns its reason. Call it in a bubble of
// testing/synctest, where these pass at once.
func (g Gate) Await(t testing.TB, ready bool) (reason string) {
	t.Helper()
	for range 10 * 60 {
		got, gates := g.r.State()
		if reason = gates[0].Reason; got == ready {
			return reason
		}
		<-time.After(time.Second)
	}
	t.Fatalf("ready is not %v after ten minutes: %q", ready, reason)
	return ""
}
