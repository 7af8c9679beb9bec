-- An impression with a correction.
SELECT toString(impression_id) FROM labels WHERE version = 2 LIMIT 1
