SELECT variant, count() AS n, sum(k) AS m, sum(c) AS d, sum(k * k) AS mm, sum(c * c) AS dd, sum(k * c) AS md
FROM
(
    SELECT variant, sum(clicked * weight) AS k, sum(weight) AS c
    FROM
    (
        SELECT variant, user AS unit, clicked, multiIf((event_time >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') AND event_time < fromUnixTimestamp64Milli(toInt64(?), 'UTC')), if(variant = 'treatment', toFloat64(?), toFloat64(?)), (event_time >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') AND event_time < fromUnixTimestamp64Milli(toInt64(?), 'UTC')
        OR event_time >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') AND event_time < fromUnixTimestamp64Milli(toInt64(?), 'UTC')), if(variant = 'treatment', toFloat64(?), toFloat64(?)), toFloat64(0)) AS weight
        FROM labels_mature
        WHERE experiment = ? AND NOT (user = 0) AND ((event_time >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') AND event_time < fromUnixTimestamp64Milli(toInt64(?), 'UTC')) OR (event_time >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') AND event_time < fromUnixTimestamp64Milli(toInt64(?), 'UTC')
        OR event_time >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') AND event_time < fromUnixTimestamp64Milli(toInt64(?), 'UTC')))
    )
    GROUP BY variant, unit
)
GROUP BY variant
-- int64 1772452800000
-- int64 1772463600000
-- float64 0.9
-- float64 0.1
-- int64 1772560800000
-- int64 1772820000000
-- int64 1773172800000
-- int64 10000000000000
-- float64 0.5
-- float64 0.5
-- string e
-- int64 1772452800000
-- int64 1772463600000
-- int64 1772560800000
-- int64 1772820000000
-- int64 1773172800000
-- int64 10000000000000
