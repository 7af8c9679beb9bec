// Package replay feeds recorded logs through edge, join and warehouse, in a process of its own, and accounts for every
// event: what became a label, what the store had already, what was refused and why, and what was lost.
package replay
