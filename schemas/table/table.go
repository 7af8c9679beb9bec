// Package table holds the tables and views of the warehouse as numbered SQL files; internal/warehouse
// applies them. They are Go templates over a few functions, so that one text serves one server and a cluster:
//
//	{{cluster}}                  ON CLUSTER ..., or nothing
//	{{local "labels"}}           the table that holds the data (labels, or labels_local)
//	{{engine "Kind" "arg"}}      Kind(arg), or ReplicatedKind('path', 'replica', arg)
//	{{dedup 100000}}             the setting of the window of insert tokens
//	{{distributed "labels" key}} the Distributed table over labels_local, or nothing
//	{{dict "key" "value"}}       parameters of a {{template}}
//	{{arm}}                      the number of an experiment's variant, from columns experiment and variant
//	{{has_time}}                 the condition that a label's partition has a watermark
//	{{trusted}}                  the condition that a label is not suspect, or that a review has cleared it
//	{{least_units}}              and {{least_clicks}}, {{rounding}}: constants of internal/stats
//
// A file NNNN_name.sql is applied once and must not change afterwards; a file NNNN_view_name.sql holds only
// CREATE OR REPLACE VIEW and is applied again whenever it has changed. A semicolon at the end of a line
// ends a statement.
package table

import "embed"

// Files are the migrations.
//
//go:embed *.sql
var Files embed.FS
