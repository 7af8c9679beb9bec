-- Sums over the units of each arm, each impression with the weight of its arm in the part of the ramp that it lies in.
SELECT variant, count() AS n, sum(k) AS m, sum(c) AS d, sum(k * k) AS mm, sum(c * c) AS dd, sum(k * c) AS md
FROM
(
    SELECT variant, sum(clicked * weight) AS k, sum(weight) AS c
    FROM
    (
        SELECT variant, {{.unit}} AS unit, clicked, multiIf({{.weights}}, toFloat64(0)) AS weight
        FROM labels_mature
        WHERE experiment = ? AND NOT ({{.nobody}}) AND ({{.within}})
    )
    GROUP BY variant, unit
)
GROUP BY variant
