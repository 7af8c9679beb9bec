-- Bytes a row of labels on disk, compressed, and the number of parts.
SELECT sum(data_compressed_bytes) / sum(rows), toInt64(count())
FROM system.parts
WHERE active AND table = 'labels' AND database = currentDatabase()
