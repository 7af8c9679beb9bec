-- Labels, their rollups and what is kept about them on disk, with indexes and marks, the largest first.
SELECT table AS name, sum(rows) AS n, sum(bytes_on_disk) AS bytes
FROM system.parts
WHERE database = currentDatabase() AND active AND (table = 'labels' OR startsWith(table, 'rollup') OR startsWith(table, 'label_'))
GROUP BY table
ORDER BY bytes DESC
