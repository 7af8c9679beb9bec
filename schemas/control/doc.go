// Package control is the control plane as a value: commands on one ordered log (control.v1, one
// partition) and the fold that turns them into state. Every process that reads the log from its start
// holds the same State; nothing else is authoritative.
//
// A command names the version of its entity that it was decided on (Expect). The fold rejects a command
// whose entity has moved on, the same way in every reader: a compare-and-set without a database.
package control
