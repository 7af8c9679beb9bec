-- Writes what the engine has to say of queries into its log.
SYSTEM FLUSH LOGS
