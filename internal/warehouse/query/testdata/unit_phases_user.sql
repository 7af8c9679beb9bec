SELECT toUInt64(greatest(1, arrayCount(at -> at <= first, ?))) AS phase,
    toInt64(countIf(arm = 'control')) AS control, toInt64(countIf(arm = 'treatment')) AS treatment
FROM
(
    SELECT toString(argMin(variant, event_time)) AS arm, toInt64(toUnixTimestamp64Milli(min(event_time))) AS first
    FROM labels_mature
    WHERE experiment = ? AND NOT (user = 0) AND variant IN ('control', 'treatment')
    GROUP BY user
)
WHERE first >= ?[phase]
GROUP BY phase
ORDER BY phase
-- []int64 [0 1772452800000]
-- string e
-- []int64 [0 1772452860000]
