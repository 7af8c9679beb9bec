// Package kafkatest runs a real Apache Kafka (KRaft, one broker or a cluster) from its published jars, for the integration
// ring and for benchmarks. It needs Java 17 and no container.
//
// The jars are fetched by coordinates with Maven, whose settings decide where from, and every file is held against
// jars.sha256; `make kafka-jars` does it once. A broker that stops, dies or is killed can be started again on its
// folder and its ports, which is what tests of its faults need.
package kafkatest
