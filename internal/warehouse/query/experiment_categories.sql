-- Categories that an experiment's impressions have. Argument: its id.
SELECT uniqExact(category) FROM labels_latest WHERE experiment = ?
