// Package arch holds the rules of the repository as tests: who may import whom and why, what every package and
// metric must have, and what must not be in the tree. docs/design.md states the rules for people.
package arch
