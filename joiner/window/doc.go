// Package window is the pure core of the joiner: an event-time left outer join of the impressions and clicks
// of one partition on the impression id. It does no I/O, reads no clock and draws no randomness.
//
// # Semantics
//
// An impression's event time t is read from its id, so an impression and its clicks always meet in the same
// time bucket [k*Bucket, (k+1)*Bucket). The watermark is min(max impression time, max click time) - Lateness
// and never falls. Punctuation without a source counts as an event of its input; once sources have promised, the
// smallest promise of those alive takes the place of the max time (type Promise). A bucket closes, whole, when the watermark
// reaches (k+1)*Bucket + Window.
//
//   - A click with click time - t <= Window that meets an open impression joins it, whichever came first: the
//     first one makes a positive label at once, further ones only count. A click before its impression's time
//     (two clocks) joins with delay 0.
//   - A click with a longer delay is late (click_after_window). Up to Window + Correction it corrects: if nothing else
//     labels the impression, its final negative is followed by a corrected label (version 2) with that click, at the close
//     or, after it, at once. What counts is the click's delay alone, not when it came.
//   - When a bucket closes, every impression in it without a joined click becomes a final negative, and every
//     click still waiting for its impression becomes late (click_without_impression).
//   - A closed bucket is remembered for Correction. A click inside of its window that comes then is late
//     (click_after_close) and corrects; an impression that comes then is labelled at once, with the clicks that had come.
//   - Then the bucket is gone: an impression is late (impression_after_close), and so is a click
//     (click_after_close), of which nobody can tell any more whether its impression existed. Nothing is
//     dropped without a record.
//   - With Config.ObserveMS an impression without a click gets a provisional negative (version 1) when its bucket has been
//     watched that long; all other versions are then one higher. An impression that comes later gets none.
//   - With Config.NegativeRate negatives are a sample by id, with its weight; positives and corrections all stay.
//   - An impression id seen twice while its bucket is remembered is a duplicate; the first bytes win.
//
// # State
//
// Per bucket: an arena of pointer-free records of about 60 bytes (record.go), an open-addressing index over it (32-bit
// tag | 32-bit position), and the same again for clicks that wait. What repeats between impressions is in a dictionary
// that forgets what no open record names. Expiry scans a bucket in the order of arrival and drops it whole.
//
// Behind the watermark a bucket is sealed: its records and index are copied to their exact size. Sealed records may be
// dropped from memory once the caller has put them into a file (image.go); a click then costs one read.
//
// # What a restart may rely on
//
// State is a pure function of (offsets consumed of both inputs, watermark, floor): an event lives in the state exactly
// if its bucket is not gone at the floor, because a bucket that is there now was there when the event came; and what
// it does to the state does not depend on whether the bucket was closed then. The interleaving of the two inputs does not matter, because
// click counts and flags do not depend on which side
// came first. So a fresh Window, given the watermark (Restore) and the input from the rewind offsets on (Replay,
// either input first), has the same Hash. The rewind offsets are kept per bucket instead of being looked up by
// record time: that is exact for any disorder and any broker timestamp.
//
// A window may also be loaded from its image of an earlier commit (Load), and the inputs replayed from there.
//
// Between two calls of Commit everything can be undone (Rollback): an aborted transaction leaves the state, the
// ledger and the hash as they were.
//
// # Where to begin reading
//
// From the bottom: index, dictionary, record, base, bucket; then the window over them: hash, memory, transaction, window; then what
// happens to it: verdict, input, watermark; last what a restart needs: snapshot, image. A file calls nothing of a later one.
package window
