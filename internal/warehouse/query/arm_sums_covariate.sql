-- Sums over the units of each arm, in each category where it is asked for, with what the units did in a time before (p...).
SELECT variant, cat, count() AS n, toFloat64(sum(k)) AS m, toFloat64(sum(c)) AS d,
    toFloat64(sum(k * k)) AS mm, toFloat64(sum(c * c)) AS dd, toFloat64(sum(k * c)) AS md,
    toFloat64(sum(pk)) AS pm, toFloat64(sum(pc)) AS pd,
    toFloat64(sum(pk * pk)) AS pmm, toFloat64(sum(pc * pc)) AS pdd, toFloat64(sum(pk * pc)) AS pmd,
    toFloat64(sum(k * pk)) AS mpm, toFloat64(sum(k * pc)) AS mpd, toFloat64(sum(c * pk)) AS dpm, toFloat64(sum(c * pc)) AS dpd
FROM
(
    SELECT toString(variant) AS variant, {{.category}} AS cat, {{.unit}} AS unit, toUInt64(sum(clicked)) AS k, toUInt64(count()) AS c
    FROM labels_mature
    WHERE experiment = ? AND NOT ({{.nobody}}) AND variant IN ('control', 'treatment') AND {{.within}}
    GROUP BY variant, cat, unit
) AS during
LEFT JOIN
(
    SELECT {{.unit}} AS unit, toUInt64(sum(clicked)) AS pk, toUInt64(count()) AS pc
    FROM labels_mature
    WHERE {{.before}}
    GROUP BY unit
) AS earlier USING (unit)
GROUP BY variant, cat
ORDER BY cat, variant
SETTINGS join_use_nulls = 0
