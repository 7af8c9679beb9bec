-- Impressions of an experiment. Argument: its id.
SELECT count() FROM labels_latest WHERE experiment = ?
