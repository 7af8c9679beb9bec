// Package schemas names everything that services share: topics, headers, reasons, identifiers and the
// shape of events, labels, control commands, tables and artifacts. It imports nothing else of this
// project and no I/O client, so that every service can meet every other one here and nowhere else.
package schemas
