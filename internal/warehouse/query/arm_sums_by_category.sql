-- Sums over the units of each arm in each category.
SELECT category, variant, count() AS n, toFloat64(sum(k)) AS m, toFloat64(sum(c)) AS d,
    toFloat64(sum(k * k)) AS mm, toFloat64(sum(c * c)) AS dd, toFloat64(sum(k * c)) AS md
FROM
(
    SELECT category, variant, toUInt64(sum(clicked)) AS k, toUInt64(count()) AS c
    FROM labels_mature
    WHERE experiment = ? AND NOT ({{.nobody}}) AND {{.within}}
    GROUP BY category, variant, {{.unit}}
)
GROUP BY category, variant
ORDER BY category
