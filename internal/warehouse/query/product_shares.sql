-- Share of each product in all labels.
SELECT toString(product), count() / (SELECT count() FROM labels) FROM labels GROUP BY product
