-- What the runs of a question cost the server: rows, bytes, memory, result rows, the least processor time in ms. Argument: their
-- log_comment.
SELECT any(read_rows), any(read_bytes), max(memory_usage), any(result_rows),
    toFloat64(min(ProfileEvents['OSCPUVirtualTimeMicroseconds'])) / 1000
FROM system.query_log
WHERE type = 'QueryFinish' AND log_comment = ?
