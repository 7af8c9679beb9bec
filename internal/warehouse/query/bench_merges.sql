-- Merges that are under way.
SELECT count() FROM system.merges WHERE database = currentDatabase()
