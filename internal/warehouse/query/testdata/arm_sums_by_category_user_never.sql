SELECT category, variant, count() AS n, toFloat64(sum(k)) AS m, toFloat64(sum(c)) AS d,
    toFloat64(sum(k * k)) AS mm, toFloat64(sum(c * c)) AS dd, toFloat64(sum(k * c)) AS md
FROM
(
    SELECT category, variant, toUInt64(sum(clicked)) AS k, toUInt64(count()) AS c
    FROM labels_mature
    WHERE experiment = ? AND NOT (user = 0) AND (0)
    GROUP BY category, variant, user
)
GROUP BY category, variant
ORDER BY category
-- string e
