-- Some experiments that have mature impressions.
SELECT DISTINCT toString(experiment) AS experiment FROM labels_mature WHERE experiment != '' ORDER BY experiment LIMIT 20
