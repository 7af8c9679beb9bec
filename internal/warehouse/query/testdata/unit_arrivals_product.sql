SELECT toDateTime(first, 'UTC') AS day, toInt64(countIf(variant = 'control')) AS control,
    toInt64(countIf(variant = 'treatment')) AS treatment
FROM
(
    SELECT variant, min(day) AS first
    FROM ctr_days
    WHERE experiment = ? AND NOT (empty(product)) AND variant IN ('control', 'treatment')
    GROUP BY variant, product
)
GROUP BY day
ORDER BY day
-- string e
