SELECT toInt64(countIf(user = 0)) AS anonymous,
    toInt64(countIf(NOT (user = 0) AND variant NOT IN ('control', 'treatment'))) AS foreign
FROM labels_mature
WHERE experiment = ? AND (event_time >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') AND event_time < fromUnixTimestamp64Milli(toInt64(?), 'UTC'))
-- string e
-- int64 1772452800000
-- int64 1772463600000
