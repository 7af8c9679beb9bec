-- Mature impressions of an experiment and the event time of the first, Unix ms. Argument: its id.
SELECT count() AS n, toInt64(toUnixTimestamp64Milli(min(event_time))) AS at FROM labels_mature WHERE experiment = ?
