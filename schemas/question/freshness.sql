-- How far behind is the warehouse?
SELECT partition, rows, newest_event, newest_watermark, newest_offset, inserted_at, idle_seconds, (SELECT horizon FROM label_horizon) AS mature_until
FROM freshness
ORDER BY partition
