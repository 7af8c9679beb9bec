// Package lab measures learning on built-in worlds without the stream: a world is drawn from a seed, its shoppers
// visit, and what they clicked becomes a data set at once, by the pairer's own code. On top of that it runs the
// trainer's jobs and holds their results against what only the world knows.
//
//   - world.go: one world, its creatives and its data set.
//   - runner.go: the trainer's jobs on this machine, described products among them.
//
// The demo shows that the loop closes; the lab says how good what it learns is, over many worlds.
package lab
