SELECT variant, countIf(c > 0) AS n, sum(k) AS m, sum(c) AS d, sum(k * k) AS mm, sum(c * c) AS dd, sum(k * c) AS md,
    toInt64(sum(every)) AS impressions
FROM
(
    SELECT variant, sum(seen * value) AS k, toFloat64(sumIf(seen, key != '')) AS c, sum(seen) AS every
    FROM
    (
        SELECT variant, product AS unit, toString(creative) AS creative, toUInt64(count()) AS seen
        FROM labels_mature
        WHERE experiment = ? AND NOT (empty(product)) AND (event_time >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') AND event_time < fromUnixTimestamp64Milli(toInt64(?), 'UTC'))
        GROUP BY variant, unit, creative
    ) AS shown
    LEFT JOIN scores ON shown.creative = scores.key
    GROUP BY variant, unit
)
GROUP BY variant
SETTINGS join_use_nulls = 0
-- string e
-- int64 1772452800000
-- int64 1772463600000
