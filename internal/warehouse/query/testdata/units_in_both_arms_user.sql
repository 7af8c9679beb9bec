SELECT toInt64(count()) AS units, toInt64(countIf(arms > 1)) AS both
FROM
(
    SELECT uniqExact(variant) AS arms
    FROM (SELECT variant, user AS unit, toUInt64(clicked) AS clicks, toUInt64(1) AS impressions FROM labels_mature WHERE experiment = ? AND (event_time >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') AND event_time < fromUnixTimestamp64Milli(toInt64(?), 'UTC')))
    WHERE NOT (unit = 0) AND variant IN ('control', 'treatment')
    GROUP BY unit
)
-- string e
-- int64 1772452800000
-- int64 1772463600000
