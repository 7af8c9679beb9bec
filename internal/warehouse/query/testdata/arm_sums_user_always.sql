SELECT arm AS variant, count() AS n, toFloat64(sum(k)) AS m, toFloat64(sum(c)) AS d,
    toFloat64(sum(k * k)) AS mm, toFloat64(sum(c * c)) AS dd, toFloat64(sum(k * c)) AS md
FROM
(
    SELECT if(unit = 0, '', toString(variant)) AS arm, unit, toUInt64(sum(clicks)) AS k, toUInt64(sum(impressions)) AS c
    FROM (SELECT variant, user AS unit, clicks, impressions FROM user_days WHERE experiment = ? AND (day >= toDate(?))
        UNION ALL
        SELECT variant, user AS unit, toUInt64(clicked) AS clicks, toUInt64(1) AS impressions FROM labels_mature WHERE experiment = ? AND (event_time >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') AND event_time < fromUnixTimestamp64Milli(toInt64(?), 'UTC')))
    GROUP BY arm, unit
)
GROUP BY arm
-- string e
-- string 1970-01-01
-- string e
-- int64 0
-- int64 0
