// Package assign decides which arm of an experiment a unit belongs to: GrowthBook's version 2 hashing, and an
// Assigner over the control state. It is pure: the same state and the same unit give the same answer in every
// replica, without a word between them.
package assign
