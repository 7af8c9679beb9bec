-- Which model version served when, and how did it do?
-- param hours = 48: newest hours of event time
SELECT hour, model_version, impressions, round(share, 4) AS share, round(ctr, 5) AS ctr, promoted
FROM model_timeline
WHERE hour > (SELECT max(hour) FROM ctr_hours) - 3600 * {hours:UInt32}
ORDER BY hour, model_version
