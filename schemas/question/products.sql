-- Which products get the most impressions, and how do they do?
-- param days = 7: newest days of event time that count
-- param limit = 20: products to list
SELECT product, category, sum(t.impressions) AS impressions, sum(t.clicks) AS clicks, round(clicks / impressions, 5) AS ctr
FROM ctr_by_product_day AS t
WHERE day > (SELECT max(day) FROM ctr_days) - {days:UInt16}
GROUP BY product, category
ORDER BY impressions DESC
LIMIT {limit:UInt32}
