SELECT category, variant, count() AS n, toFloat64(sum(k)) AS m, toFloat64(sum(c)) AS d,
    toFloat64(sum(k * k)) AS mm, toFloat64(sum(c * c)) AS dd, toFloat64(sum(k * c)) AS md
FROM
(
    SELECT category, variant, toUInt64(sum(clicked)) AS k, toUInt64(count()) AS c
    FROM labels_mature
    WHERE experiment = ? AND NOT (empty(product)) AND (event_time >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') AND event_time < fromUnixTimestamp64Milli(toInt64(?), 'UTC'))
    GROUP BY category, variant, product
)
GROUP BY category, variant
ORDER BY category
-- string e
-- int64 0
-- int64 10000000000000
