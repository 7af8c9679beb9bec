-- First and newest event time and the horizon, Unix ms.
SELECT toInt64(toUnixTimestamp64Milli(min(event_time))), toInt64(toUnixTimestamp64Milli(max(event_time))),
    toInt64((SELECT horizon_ms FROM label_horizon))
FROM labels
