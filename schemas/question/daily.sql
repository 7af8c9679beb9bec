-- How did the click-through rate go from day to day?
SELECT day, sum(t.impressions) AS impressions, sum(t.clicks) AS clicks, round(clicks / impressions, 5) AS ctr
FROM ctr_days AS t
GROUP BY day
ORDER BY day
