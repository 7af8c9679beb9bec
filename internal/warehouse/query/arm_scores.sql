-- Sums over the units of each arm of the scores (m) of what they were shown, and of the impressions with a score (d).
-- The table scores goes with the query: key is a creative.
SELECT variant, countIf(c > 0) AS n, sum(k) AS m, sum(c) AS d, sum(k * k) AS mm, sum(c * c) AS dd, sum(k * c) AS md,
    toInt64(sum(every)) AS impressions
FROM
(
    SELECT variant, sum(seen * value) AS k, toFloat64(sumIf(seen, key != '')) AS c, sum(seen) AS every
    FROM
    (
        SELECT variant, {{.unit}} AS unit, toString(creative) AS creative, toUInt64(count()) AS seen
        FROM labels_mature
        WHERE experiment = ? AND NOT ({{.nobody}}) AND {{.within}}
        GROUP BY variant, unit, creative
    ) AS shown
    LEFT JOIN scores ON shown.creative = scores.key
    GROUP BY variant, unit
)
GROUP BY variant
SETTINGS join_use_nulls = 0
