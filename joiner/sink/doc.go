// Package sink brings the joiner's topics into the warehouse: labels.v1 exactly once, and mirrors of
// audit.v1, creatives.v1, pairs.v1, late.v1 and control.v1.
//
// Labels. Per partition, from the committed offset s: (1) commit s with the metadata "pending=e", (2)
// insert the rows of [s, e) as one block whose deduplication token names topic id, partition, s and e, (3)
// commit e. Whoever finds "pending=e" after a crash reads exactly [s, e) again and inserts it with the
// same token: the range was fixed before the first insert, so the block is the same, and ClickHouse
// applies a token once. A commit that the group refuses ends the session before anything is inserted, so
// an instance that was thought dead cannot add a block of its own; at most it repeats one.
//
// Any failure ends the session: memory is dropped, nothing is lost, and after a pause the next session
// starts at the committed offsets. So the one recovery path is used all the time.
//
// Audit. Every minute the warehouse is held against audit.v1; a difference that stays is an alarm in the log
// and in ctrloop_sink_audit_mismatched_minutes.
//
// Mirrors. Their tables replace rows by key, so they are read at least once. control.v1 is read from its
// start each time, because the verdict on a command depends on all commands before it.
package sink
