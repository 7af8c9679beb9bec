// Package invariant holds checks that must never fail: ledgers that close, offsets and watermarks that only
// grow, state that equals its rebuild. They are compiled in under the build tags "invariants" and "race",
// so that every test under the race detector and every canary build runs them, and cost nothing elsewhere.
package invariant
