// Package broker runs Apache Kafka as a child of this process: one broker that is its own controller, on loopback, with
// its state in a folder. It is what everything embedded runs on; the child is started again when it dies, on the same ports.
//
// One broker is one copy on one disk. Writes go to the page cache, as in every Kafka: they survive kill -9 of all
// processes, not a power cut.
package broker
