// Package segment keeps the state of the join on a local disk, so that a restart need not read a whole window of the
// inputs again, and so that cold buckets need not stay in memory.
//
// It is a cache. The truth is the inputs and the metadata of the committed offsets: whatever is in a folder of this
// package may be deleted at any time while the joiner is stopped, and whatever does not fit (another topic, another
// window, a leader epoch that the broker does not know, a checksum that is wrong) is ignored and made anew. And
// whatever fits is believed only if the state that comes of it has the committed hash.
//
// # Files
//
// One folder a partition:
//
//	seg-<name>.dat   records and indexes of buckets that were sealed together; written once, never changed
//	manifest         the state at one commit besides those, and which file holds which bucket
//	*.tmp            what a crash left; deleted at the next start
//
// The manifest is one line of JSON, which a person can read (topic ids, partition, leader epochs, offsets, sequence of
// the commit, window, files with their blocks and checksums), then the image of the window, then its checksum. It is
// written to a temporary file, synced and renamed once the files that it names are synced; so at every moment there is
// a manifest that is whole, or none. A file goes when no durable manifest names it any more.
//
// # When the disk fails
//
// A write that fails (no space left) ends writing for this assignment, with a log line and a metric; the join goes on in
// memory. A read of a spilled bucket that fails ends the session: the state is rebuilt from the inputs.
package segment
