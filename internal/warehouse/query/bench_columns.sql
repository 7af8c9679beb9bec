-- Columns of labels on disk.
SELECT c.name AS column, c.type AS kind, c.compression_codec AS codec, toFloat64(c.data_compressed_bytes) AS bytes,
    c.data_uncompressed_bytes / greatest(1, c.data_compressed_bytes) AS ratio
FROM system.columns AS c
WHERE c.database = currentDatabase() AND c.table = 'labels'
