SELECT arm, count(), sum(m), sum(d), sum(m * m), sum(d * d), sum(m * d)
FROM
(
    SELECT cityHash64(variant) AS arm, user, toUInt64(sum(clicked)) AS m, toUInt64(count()) AS d
    FROM labels_mature
    WHERE experiment = 'x-1'
    GROUP BY arm, user
)
GROUP BY arm
