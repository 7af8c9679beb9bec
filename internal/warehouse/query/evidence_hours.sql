-- What each hour of impression time adds up to, for the audit of evidence.v1. Sums of 1/p are whole numbers of 1/2^20, each at most
-- 4096, rounded down; impressions without a propensity in (0, 1] are not in them. Arguments: from and until, Unix seconds.
WITH if(propensity > 0 AND propensity <= 1, toInt64(least(1 / propensity, 4096) * 1048576), 0) AS inverse
SELECT toInt64(toUnixTimestamp(toStartOfHour(toDateTime(event_time, 'UTC')))) * 1000 AS hour_ms, toInt64(count()) AS impressions,
    toInt64(sum(clicked)) AS clicks, toInt64(sum(inverse)) AS inverses, toInt64(sumIf(inverse, clicked = 1)) AS clicked_inverses
FROM labels_mature
WHERE event_time >= toDateTime(?, 'UTC') AND event_time < toDateTime(?, 'UTC')
GROUP BY hour_ms
ORDER BY hour_ms
