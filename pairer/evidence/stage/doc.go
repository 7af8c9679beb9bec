// Package stage runs package evidence on labels.v1, exactly once: it consumes labels and writes to evidence.v1, in one Kafka
// transaction with the consumed offsets, the cells that they changed. It needs no warehouse.
//
// # State
//
// The output is the changelog. What a restart needs besides it (sequence, floors, ledger, the offset of evidence.v1 from which on
// all records of the open hours lie, a hash of cells and suspect negatives) travels as metadata of the offset commit, so it is
// atomic with the records. On assignment a partition's state is read from its partition of evidence.v1, beside the poll loop,
// and is accepted only if its hash and its ledger are the committed ones.
//
// # Aborts
//
// The client rewinds the offsets of an aborted transaction; the cells undo it (evidence.Partition.Rollback). When the outcome of a
// commit is not known, the session is closed and everything is rebuilt.
//
// # Instances
//
// Several instances share the partitions; when one comes or goes, only what moves is rebuilt. Each is a static member under its
// transactional id: a restart moves nothing, and a second process with the id fences the first.
package stage
