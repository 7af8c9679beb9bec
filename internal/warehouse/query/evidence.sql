-- What each creative earned in each cell, for the pairer, in one order.
SELECT product, category, placement, creative, toUInt64(impressions) AS impressions, toUInt64(clicks) AS clicks, from_time, to_time
FROM pair_evidence
ORDER BY product, placement, creative, category
