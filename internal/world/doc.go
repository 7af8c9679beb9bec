// Package world is a shop whose truth is known: shoppers, a click model that looks at the pixels of the
// creatives it is shown, the dirt of real logs, and an oracle that knows every right label. The demo, the
// tests and the benchmarks share it. Everything is drawn from a seed; each seed is another world.
//
//   - world.go: taste and the true click-through rate of a creative, from its pixels (read by package eye).
//   - traffic.go, shoppers.go: visits in virtual time, decisions, impressions, clicks, dirt.
//   - journal.go: every batch is on disk before it is sent, so that a killed run goes on where it was.
//   - oracle.go: the right label of every impression, compared with labels that a system made.
//
// The world knows nothing of the system under test: it asks a Decider which creative to show, hands events
// to a Sender, and looks up what a creative's pixels are worth through a callback.
package world
