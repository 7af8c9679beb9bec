-- Which events came after the windows of their impressions had closed, and are in no label? Newest first.
SELECT event_time, reason, impression_id, watermark, topic, partition, offset
FROM late FINAL
ORDER BY event_time DESC
LIMIT 1000
