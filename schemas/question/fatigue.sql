-- Do creatives wear out? Click-through rate by age, over creatives that have reached it.
SELECT age_days, uniqExact(product, creative) AS creatives, sum(t.impressions) AS impressions, round(sum(t.clicks) / impressions, 5) AS ctr
FROM creative_fatigue AS t
GROUP BY age_days
ORDER BY age_days
