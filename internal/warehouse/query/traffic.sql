-- Impressions and clicks by creative and by slot of time, and those of the champion since a time.
-- Arguments: width of a slot in ms, champion, since (Unix ms).
SELECT toString(creative) AS ad, intDiv(toInt64(toUnixTimestamp64Milli(event_time)), toInt64(?)) AS slot, toUInt8(grouping(ad)) AS is_slot,
    count() AS n, toUInt64(sum(clicked)) AS k, countIf(live) AS live_n, toUInt64(sumIf(clicked, live)) AS live_k
FROM
(
    SELECT creative, event_time, clicked,
        model_version = ? AND event_time >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') AS live
    FROM labels_mature
)
GROUP BY GROUPING SETS ((ad), (slot))
ORDER BY slot
