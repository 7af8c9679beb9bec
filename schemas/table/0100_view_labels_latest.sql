-- labels_latest
-- Question: what is the current verdict on each impression, with corrections applied?
-- Columns:  those of labels, suspect and arm_share included; one row per impression.
-- Example:  SELECT kind, count() FROM labels_latest GROUP BY kind
-- Cost:     FINAL makes rows that were inserted twice count once before they are merged; it costs about
--           0.17 us of CPU a row on unmerged parts and little after a merge, the test for a newer version 0.1 us. A row is
--           superseded when the next version of its impression is there; versions count up by one, so the set holds one entry per
--           correction, not one per impression. (argMax by impression would be right too, at 25 times the cost.)
CREATE OR REPLACE VIEW labels_latest {{cluster}}AS
SELECT *
FROM labels FINAL
WHERE {{version_key "version"}} GLOBAL NOT IN (SELECT {{version_key "version - 1"}} FROM labels WHERE version > 1)
COMMENT 'Current verdict on each impression, corrections applied';
