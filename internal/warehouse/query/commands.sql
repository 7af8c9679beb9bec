-- Newest applied commands.
SELECT toString(type) AS type, entity, toString(actor) AS actor, note, time, JSONExtractString(data, 'version') AS version
FROM control_log FINAL
WHERE rejected = ''
ORDER BY time DESC, offset DESC
LIMIT 50
