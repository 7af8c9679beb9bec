SELECT countIf(v > 1) AS n FROM (SELECT uniqExact(variant) AS v FROM labels_mature WHERE experiment = ? AND (event_time >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') AND event_time < fromUnixTimestamp64Milli(toInt64(?), 'UTC')) GROUP BY user)
-- string e
-- int64 1772452800000
-- int64 1772463600000
