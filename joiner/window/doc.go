// Package window is the pure core of the joiner: an event-time left outer join of the impressions and clicks
// of one partition on the impression id. It does no I/O, reads no clock and draws no randomness.
//
// # Semantics
//
// An impression's event time t is read from its id, so an impression and its clicks always meet in the same
// time bucket [k*Bucket, (k+1)*Bucket). The watermark is min(max impression time, max click time) - Lateness
// and never falls; punctuation counts as an event of its input. A bucket closes, whole, when the watermark
// reaches (k+1)*Bucket + Window.
//
//   - A click with click time - t <= Window that meets an open impression joins it, whichever came first: the
//     first one makes a positive label at once, further ones only count. A click before its impression's time
//     (two clocks) joins with delay 0.
//   - A click with a longer delay that meets an open impression is late (click_after_window). If nothing else
//     labels the impression, its bucket's close emits the final negative and, right behind it, a corrected
//     label (version 2) with that click.
//   - When a bucket closes, every impression in it without a joined click becomes a final negative, and every
//     click still waiting for its impression becomes late (click_without_impression).
//   - After the close the bucket is gone: an impression is late (impression_after_close), and so is a click
//     (click_after_close), of which nobody can tell any more whether its impression existed. Nothing is
//     dropped without a record.
//   - An impression id seen twice while its bucket is open is a duplicate; the first bytes win.
//
// # State
//
// Per bucket: 32-byte pointer-free records, an open-addressing index (32-bit tag | 32-bit position), one byte
// arena with the encoded impressions, and the same again for clicks that wait. Expiry scans a bucket in the
// order of arrival and drops it whole.
//
// # What a restart may rely on
//
// State is a pure function of (offsets consumed of both inputs, watermark): an event lives in the state exactly
// if its bucket is open at the watermark, because a bucket that is open now was open when the event came. The
// interleaving of the two inputs does not matter, because click counts and flags do not depend on which side
// came first. So a fresh Window, given the watermark (Restore) and the input from the rewind offsets on (Replay,
// either input first), has the same Hash. The rewind offsets are kept per bucket instead of being looked up by
// record time: that is exact for any disorder and any broker timestamp.
//
// Between two calls of Commit everything can be undone (Rollback): an aborted transaction leaves the state, the
// ledger and the hash as they were.
package window
