-- Pairs made since the data began.
SELECT count() FROM pairs FINAL
