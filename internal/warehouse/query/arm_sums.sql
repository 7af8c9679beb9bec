-- Sums over the units of each arm of an experiment: n units, m clicks, d impressions. What has no unit has the variant ''.
SELECT arm AS variant, count() AS n, toFloat64(sum(k)) AS m, toFloat64(sum(c)) AS d,
    toFloat64(sum(k * k)) AS mm, toFloat64(sum(c * c)) AS dd, toFloat64(sum(k * c)) AS md
FROM
(
    SELECT if({{.nobody}}, '', toString(variant)) AS arm, unit, toUInt64(sum(clicks)) AS k, toUInt64(sum(impressions)) AS c
    FROM ({{.seen}})
    GROUP BY arm, unit
)
GROUP BY arm
