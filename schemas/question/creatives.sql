-- How does each creative of a product do?
-- param product: id of the product
-- param least = 1000: impressions below which a creative is left out
SELECT creative, model_version, impressions, clicks, round(ctr, 5) AS ctr, first_seen, last_seen
FROM ctr_by_creative
WHERE product = {product:String} AND impressions >= {least:UInt64}
ORDER BY ctr DESC
