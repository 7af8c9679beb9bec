-- Newest event time that had been inserted by a time of the wall, Unix ms. Argument: Unix seconds.
SELECT toInt64(toUnixTimestamp64Milli(max(event_time))) FROM labels WHERE inserted_at <= toDateTime(?, 'UTC')
