-- Rows of labels of any experiment.
SELECT count() FROM labels WHERE experiment != ''
