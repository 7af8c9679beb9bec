// Package joiner turns impressions and clicks into click-through labels, exactly once.
//
// It consumes imp.v1 and clk.v1, joins them partition by partition (package window has the semantics) and
// writes, in one Kafka transaction with the consumed offsets: labels to labels.v1, what it could not use to
// late.v1 and dlq.v1, and the sums that the warehouse is held against to audit.v1.
//
// # State
//
// The input is the changelog. What a restart needs besides it (watermark, maximum times, ledger, the offsets
// to rewind to, a hash of the state) travels as metadata of the offset commit, so it is atomic with the labels.
// On assignment a partition's state is rebuilt by replaying the input from the rewind offsets up to the
// committed ones without output, and is accepted only if its hash and its ledger are the committed ones.
// The metadata of the input that moved last is the valid one; its sequence number says which that is, and it
// names the offsets of both inputs, which must be the committed ones.
//
// Package segment keeps the state on a local disk besides: a cache that makes a restart fast, and the place of cold
// windows when Config.MemoryLimit is set.
//
// # Aborts
//
// The client rewinds the offsets of an aborted transaction; the window undoes it (window.Rollback). When the
// outcome of a commit is not known, or the broker's committed offsets are not those that the state stands for,
// the session is closed and everything is rebuilt.
//
// # Alignment
//
// An input that runs ahead of the other one in event time by more than Config.MaxLead is paused, which bounds
// the clicks that wait and the impressions that are open. The watermark moves only by records, never by a
// clock of its own. With both inputs idle, the punctuation of ingest closes windows: with clock "wall", once every raw partition is
// read to its end, it follows the wall clock less the allowed skew, so the last impression of a quiet shop gets its label a window,
// lateness and skew after it. With clock "event" nothing closes until an event or a watermark comes.
package joiner
