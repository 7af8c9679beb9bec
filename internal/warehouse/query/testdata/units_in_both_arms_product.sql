SELECT toInt64(count()) AS units, toInt64(countIf(arms > 1)) AS both
FROM
(
    SELECT uniqExact(variant) AS arms
    FROM (SELECT variant, product AS unit, clicks, impressions FROM ctr_days WHERE experiment = ? AND (day >= toDate(?))
        UNION ALL
        SELECT variant, product AS unit, toUInt64(clicked) AS clicks, toUInt64(1) AS impressions FROM labels_mature WHERE experiment = ? AND (event_time >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') AND event_time < fromUnixTimestamp64Milli(toInt64(?), 'UTC')))
    WHERE NOT (empty(unit)) AND variant IN ('control', 'treatment')
    GROUP BY unit
)
-- string e
-- string 2026-03-11
-- string e
-- int64 1773172800000
-- int64 1773187200000
