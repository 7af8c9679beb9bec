// Package pairer turns labels into preference pairs, without end: it looks at the evidence in the warehouse,
// decides whether there is enough new evidence to learn from (Trigger), and if so writes an immutable data
// set, publishes its pairs on pairs.v1 and announces it on the control log, where the trainer-bridge picks it up.
//
// The warehouse holds every label exactly once, so the pairer needs no state of its own: a look that is
// interrupted and repeated builds the same pairs, and the same pairs are the same data set, because data sets
// are named by their content.
package pairer
