-- Logged decisions of an experiment's arms and of the policy that explored in their place, in the order of their times.
SELECT toString(product), toString(creative), clicked, propensity
FROM labels_mature
WHERE (experiment = ? OR experiment = '' AND policy = ?) AND {{.within}}
ORDER BY event_time, impression_id
LIMIT ?
