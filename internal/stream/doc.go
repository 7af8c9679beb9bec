// Package stream is the only door to Kafka. It holds the clients that the services use (producers,
// transactions, group consumers, plain readers, topic set-up) and the embedded broker for runs on one
// machine. The same code runs against the embedded broker and against a cluster: only Config differs.
//
// # Where a record goes
//
// A record with a key goes to the partition that its key hashes to (murmur2, as every Kafka client
// does, see PartitionOf); a record without a key goes to Record.Partition exactly, and so does every record of a topic that is
// placed (schemas.Topic.Placed). All clients of this package follow this one rule, so that topics with the same partition count
// are co-partitioned.
//
// # The commit rule
//
// Tx is exactly-once: consumed offsets, their metadata and produced records become visible together or
// not at all. Three rules keep it so.
//
//  1. Nothing is marked after a revoke. Every record that Poll returns belongs to the current
//     assignment; callbacks of a rebalance wait until the next Poll (kgo.BlockRebalanceOnPoll), so that a
//     transaction never commits offsets of a partition that has moved on. What could still slip through
//     (the group threw this member out, or nothing was polled and so nothing blocked) is caught by the
//     session, which turns the commit into an abort, and by the broker, which checks the generation.
//  2. A transaction never ends inside a rebalance callback: the session would deadlock. OnAssigned and
//     OnLost therefore do not run in the client's callbacks at all, but in Poll, on the caller's goroutine,
//     when no transaction is open.
//  3. A commit waits for the promise of every record of the transaction; one failed record aborts.
//
// After an abort the client is rewound to the last committed position of every partition. The caller's
// own state is not: it must drop whatever it derived from records polled since the last commit (an undo
// log, or a rebuild). This is the classic hidden bug of exactly-once code.
//
// # Offsets never jump
//
// Consumers start at the committed offset, or at the start of the log when there is none
// (kgo.ConsumeStartOffset), and never anywhere else (kgo.ConsumeResetOffset of kgo.NoResetOffset): the
// client library's default rewinds silently when it meets an unknown offset, and a rewind is a flood of
// duplicates. Data loss and out-of-range are errors that end the consumer.
package stream
