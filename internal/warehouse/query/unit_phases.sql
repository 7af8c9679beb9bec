-- Units of both arms by the phase of the ramp in which they were first seen; not those that came while a phase settled.
-- Arguments: when the phases began (Unix ms, an array), the experiment, when they had settled (the same).
SELECT toUInt64(greatest(1, arrayCount(at -> at <= first, ?))) AS phase,
    toInt64(countIf(arm = 'control')) AS control, toInt64(countIf(arm = 'treatment')) AS treatment
FROM
(
    SELECT toString(argMin(variant, event_time)) AS arm, toInt64(toUnixTimestamp64Milli(min(event_time))) AS first
    FROM labels_mature
    WHERE experiment = ? AND NOT ({{.nobody}}) AND variant IN ('control', 'treatment')
    GROUP BY {{.unit}}
)
WHERE first >= ?[phase]
GROUP BY phase
ORDER BY phase
