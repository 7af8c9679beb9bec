-- Newest promotions, roll-backs and ends of experiments; of a decision, the version that it made champion.
SELECT toString(type) AS type, entity, toString(actor) AS actor, note, time,
    JSONExtractString(data, if(type = 'experiment.decided', 'champion', 'version')) AS version,
    JSONExtractString(data, 'outcome') AS outcome
FROM control_log FINAL
WHERE rejected = '' AND type IN ('model.promoted', 'model.rolled_back', 'experiment.decided')
ORDER BY time DESC, offset DESC
LIMIT 50
