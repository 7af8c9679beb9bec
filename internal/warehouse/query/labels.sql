-- Rows of labels, every version counted.
SELECT count() FROM labels
