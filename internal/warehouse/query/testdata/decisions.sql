SELECT toString(product), toString(creative), clicked, propensity
FROM labels_mature
WHERE (experiment = ? OR experiment = '' AND policy = ?) AND (event_time >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') AND event_time < fromUnixTimestamp64Milli(toInt64(?), 'UTC'))
ORDER BY event_time, impression_id
LIMIT ?
-- string e
-- string explore:e
-- int64 1772452800000
-- int64 1772463600000
-- int 1000
