// Package ramp decides what becomes of a rollout: hold, step, promote, roll back, or give up as inconclusive.
// It is a pure function of the experiment's state and of sums; it reads no clock and does no I/O.
//
// # Which data decide
//
// A ramp changes the mix of the arms while the click-through rate itself moves with the hour and the season.
// Sums pooled over steps would then compare a treatment that lived mostly late with a control that lived mostly
// early (Simpson's paradox): a pooled lift can have the wrong sign. So every figure here is of one step, in which
// the shares are constant and both arms see the same hours:
//
//   - the promotion and the rollback for a lift below zero are decided on the deciding step alone, the one with
//     the largest share below 1, by one two-sided confidence sequence of the experiment's alpha. Earlier steps
//     give the decision no data (little is lost: they are the small ones) and cost it no alpha;
//   - the guards look at every step, each with a sequence of its own that starts with the step. The sample-ratio
//     guard divides its alpha among the steps, because units come back from step to step and the Bayes factors
//     of the steps must therefore not be multiplied;
//   - at share 1 there is no control. Such a step only confirms: it is entered once the deciding step has shown
//     a lift, generation errors are watched, and the promotion is made on the deciding step's data, which
//     are complete by then.
//
// A step that a person left and entered again is one sample over its visits: its share is the same each time, so
// nothing of the mix of the arms changes between them, and one sequence goes on (docs/adr/0022). While the ramp is
// paused, only a guard's roll-back acts.
package ramp
