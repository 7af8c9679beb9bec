-- Applied commands that make an experiment's ramp, in their order. Arguments: its entity, the three types.
SELECT toString(type) AS type, data
FROM control_log FINAL
WHERE rejected = '' AND entity = ? AND type IN (?, ?, ?)
ORDER BY source, offset
