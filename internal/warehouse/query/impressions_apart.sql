-- Impressions of an experiment that belong to no unit of an arm: without a unit, or of a variant that the experiment does not have.
SELECT toInt64(countIf({{.nobody}})) AS anonymous,
    toInt64(countIf(NOT ({{.nobody}}) AND variant NOT IN ('control', 'treatment'))) AS foreign
FROM labels_mature
WHERE experiment = ? AND {{.within}}
