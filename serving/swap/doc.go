// Package swap brings model versions into service and takes them out without dropping a request:
//
//	check the artifact -> load under its own name on one replica, then on all -> read back -> probe -> warm up
//	-> routable -> flip the champion -> keep the previous one -> drain by in-flight count -> unload
//
// What should be resident follows from the control log alone; the Controller compares it with what the
// replicas have, and mends. A failure before the flip leaves routing untouched and is recorded in the log.
//
//   - check.go: an adapter against the base's index, before any server sees it.
//   - probe.go: the trainer's golden answer, after the load.
//   - controller.go: the two loops, and flips.
//   - survey.go: what the replicas have.
//   - residency.go: loads, unloads and their order.
//   - states.go: what the control log is told of versions.
package swap
