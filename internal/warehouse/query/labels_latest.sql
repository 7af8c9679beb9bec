-- Impressions.
SELECT count() FROM labels_latest
