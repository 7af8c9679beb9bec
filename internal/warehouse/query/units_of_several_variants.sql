-- Units that were seen with more than one variant.
SELECT countIf(v > 1) AS n FROM (SELECT uniqExact(variant) AS v FROM labels_mature WHERE experiment = ? AND {{.within}} GROUP BY {{.unit}})
