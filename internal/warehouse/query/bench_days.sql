-- Days that labels have parts of, in their order.
SELECT DISTINCT partition
FROM system.parts
WHERE database = currentDatabase() AND table = 'labels' AND active
ORDER BY partition
