-- How parts of labels are merged, by measured CPU (docs/adr/0028-hot-backup-and-merges.md). About ten parts of a size at a
-- time instead of five: a row is written anew less often, and FINAL meets more parts. Row by row, all columns together,
-- below 5 million rows: partitions of the topic bring blocks of the same minutes, which do not merge by ranges, and there
-- merging column by column costs half as much again. Above it would take memory: there it is column by column.
ALTER TABLE {{local "labels"}} {{cluster}}MODIFY SETTING merge_selector_base = 10, vertical_merge_algorithm_min_rows_to_activate = 5000000;
