-- Newest promotions, roll-backs and ends of experiments.
SELECT toString(type) AS type, entity, toString(actor) AS actor, note, time, JSONExtractString(data, 'version') AS version
FROM control_log FINAL
WHERE rejected = '' AND type IN ('model.promoted', 'model.rolled_back', 'experiment.decided')
ORDER BY time DESC, offset DESC
LIMIT 50
