-- Writes what the engine has to say of queries into system.query_log.
SYSTEM FLUSH LOGS query_log
