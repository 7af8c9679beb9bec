-- Units, and those of them that were seen in both arms.
SELECT toInt64(count()) AS units, toInt64(countIf(arms > 1)) AS both
FROM
(
    SELECT uniqExact(variant) AS arms
    FROM ({{.seen}})
    WHERE NOT ({{.nobody}}) AND variant IN ('control', 'treatment')
    GROUP BY unit
)
