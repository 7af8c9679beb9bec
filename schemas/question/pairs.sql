-- Which preference pairs of a product were built, and on what evidence?
-- param product: id of the product
SELECT placement, chosen, chosen_impressions, chosen_clicks, rejected, rejected_impressions, rejected_clicks, round(weight, 3) AS weight, split
FROM pairs FINAL
WHERE product = {product:String}
ORDER BY weight DESC
