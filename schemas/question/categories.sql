-- Which categories do well?
SELECT category, products, creatives, impressions, clicks, round(ctr, 5) AS ctr
FROM ctr_by_category
ORDER BY ctr DESC
