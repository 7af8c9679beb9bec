-- Newest applied commands; of a decision, the version that it made champion.
SELECT toString(type) AS type, entity, toString(actor) AS actor, note, time,
    JSONExtractString(data, if(type = 'experiment.decided', 'champion', 'version')) AS version,
    JSONExtractString(data, 'outcome') AS outcome
FROM control_log FINAL
WHERE rejected = ''
ORDER BY time DESC, offset DESC
LIMIT 50
