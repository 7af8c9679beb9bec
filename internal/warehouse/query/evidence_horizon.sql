-- Up to which event time the warehouse is complete, Unix milliseconds, for the audit of evidence.v1.
SELECT toInt64(horizon_ms) AS horizon_ms FROM label_horizon
