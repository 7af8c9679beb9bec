-- Empties labels.
TRUNCATE TABLE labels
