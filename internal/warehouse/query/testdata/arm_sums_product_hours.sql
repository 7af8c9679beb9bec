SELECT arm AS variant, count() AS n, toFloat64(sum(k)) AS m, toFloat64(sum(c)) AS d,
    toFloat64(sum(k * k)) AS mm, toFloat64(sum(c * c)) AS dd, toFloat64(sum(k * c)) AS md
FROM
(
    SELECT if(empty(unit), '', toString(variant)) AS arm, unit, toUInt64(sum(clicks)) AS k, toUInt64(sum(impressions)) AS c
    FROM (SELECT variant, product AS unit, toUInt64(clicked) AS clicks, toUInt64(1) AS impressions FROM labels_mature WHERE experiment = ? AND (event_time >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') AND event_time < fromUnixTimestamp64Milli(toInt64(?), 'UTC')))
    GROUP BY arm, unit
)
GROUP BY arm
-- string e
-- int64 1772452800000
-- int64 1772463600000
