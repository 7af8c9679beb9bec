// Package bench measures the join: its loop alone, end to end on the embedded broker and on a real one, and beside
// Kafka Streams on the same log. Every label of every run is held against an oracle, so that no figure is of a join
// that is wrong.
package bench
