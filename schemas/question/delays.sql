-- How long after the impression do clicks come, and how many come after the window?
SELECT day, sum(t.clicks) AS clicks, max(p50_ms) AS slowest_p50_ms, max(p99_ms) AS slowest_p99_ms, max(max_ms) AS longest_ms, sum(t.corrected) AS after_window
FROM click_delay AS t
GROUP BY day
ORDER BY day
