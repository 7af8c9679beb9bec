// Package setup fetches what the embedded form needs and a Go build cannot carry: the ClickHouse engine as a
// library (0.6 GB), and a Python environment for training and the model server.
//
// Everything goes under one home folder (CTRLOOP_HOME, default ctrloop in the user's cache folder). Downloads go
// through the user's own package clients (npm; uv or pip), so that proxies, mirrors and certificates configured
// for them hold. Everything is pinned and verified by checksum; a file or environment gets its final name or
// marker only when it is whole, so that a set-up killed at any point is repaired by running it again, from what
// was downloaded before where the client caches it. A lock on the home folder keeps two set-ups apart.
//
// [Library] and [Python] say where things are without fetching anything; [Run] fetches.
package setup
