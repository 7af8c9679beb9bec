-- Inserts into labels since a time, and their processor seconds. Argument: the time.
SELECT count(), sum(ProfileEvents['UserTimeMicroseconds'] + ProfileEvents['SystemTimeMicroseconds']) / 1e6
FROM system.query_log
WHERE type = 'QueryFinish' AND query_kind = 'Insert' AND has(tables, currentDatabase() || '.labels') AND event_time >= ?
