// Package simulate shows by simulation what the statistics of rollouts promise: users come in batches, are assigned
// by the real assigner, add up to the real sums, and after every batch the real sequence and the real controller
// look. `ctrloop bench experiments` runs it; docs/validity.md has the tables and says what each part is for.
//
// The package is pure: results depend on the options alone, not on how many workers share the runs, since every run
// draws from a generator of its own, made of the seed, the name of its row and its number.
//
// Users are drawn exactly, from the joint distribution of their impressions and clicks, not from normal
// approximations of sums: impressions by user have a heavy tail, and users' own rates differ (beta-binomial), so
// that impressions of one user go together.
package simulate
