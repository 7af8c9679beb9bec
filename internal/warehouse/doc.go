// Package warehouse is the door to ClickHouse: an embedded engine for single-machine use, connections
// over the native protocol, migrations of schemas/table, typed inserts, and SQL for people.
//
// The embedded engine is the real ClickHouse out of libchdb.so: clickhouse-local with its network
// handlers, started in a child process made of this very binary (MaybeChild, StartEngine). Everything
// else works the same against the engine and against a ClickHouse server or cluster given by its DSN.
//
// No other package imports clickhouse-go or loads the library.
package warehouse
