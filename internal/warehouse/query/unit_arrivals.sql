-- Units of each arm by the day on which they were first seen. Argument: the experiment.
SELECT toDateTime(first, 'UTC') AS day, toInt64(countIf(variant = 'control')) AS control,
    toInt64(countIf(variant = 'treatment')) AS treatment
FROM
(
    SELECT variant, min(day) AS first
    FROM {{.days}}
    WHERE experiment = ? AND NOT ({{.nobody}}) AND variant IN ('control', 'treatment')
    GROUP BY variant, {{.unit}}
)
GROUP BY day
ORDER BY day
