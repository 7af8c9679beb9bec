-- label_horizon
-- Question: up to which event time are click-through rates unbiased?
-- Columns:  horizon_ms (Unix milliseconds, event time; 0: nothing is mature), horizon (the same as a time), window_ms, bucket_ms,
--           partitions (of labels.v1), timeless (those of them that have no watermark yet), timeless_partitions (their numbers).
-- Why:      a click is labelled at once, its absence only when the join window closes, so the newest
--           impressions show clicks only. An impression is mature when event_time <= horizon, where horizon is
--           the smallest, over the partitions of labels.v1, watermark - window - bucket. The watermark is the one that the joiner
--           has committed and whose labels are all here (label_progress, by the sink); in a warehouse that no such sink has
--           written to it is the newest one of a label.
--           A partition without a watermark has shown clicks only, and none of its windows has closed. It does not
--           hold the others: its impressions are left out until it has one (labels_mature).
-- Example:  SELECT horizon FROM label_horizon
-- Cost:     a few rows.
CREATE OR REPLACE VIEW label_horizon {{cluster}}AS
WITH
    (SELECT max(value) FROM (SELECT value FROM parameters FINAL WHERE name = 'window_ms')) AS configured_window,
    (SELECT max(value) FROM (SELECT value FROM parameters FINAL WHERE name = 'bucket_ms')) AS configured_bucket,
    (SELECT argMax(source, time) FROM label_progress) AS current,
    if(configured_window > 0, configured_window, 1800000) AS window_ms,
    if(configured_bucket > 0, configured_bucket, 1000) AS bucket_ms
SELECT
    if(partitions = timeless, 0, greatest(0, toInt64(minIf(newest_ms, newest_ms > 0)) - window_ms - bucket_ms)) AS horizon_ms,
    fromUnixTimestamp64Milli(horizon_ms, 'UTC') AS horizon,
    window_ms,
    bucket_ms,
    count() AS partitions,
    countIf(newest_ms <= 0) AS timeless,
    groupArrayIf(toUInt16(partition), newest_ms <= 0) AS timeless_partitions
FROM
(
    SELECT partition, toUnixTimestamp64Milli(max(watermark)) AS newest_ms
    FROM label_progress
    WHERE source = current AND current != ''
    GROUP BY partition
    UNION ALL
    SELECT partition, toUnixTimestamp64Milli(max(watermark)) AS newest_ms
    FROM label_partitions
    WHERE current = ''
    GROUP BY partition
)
COMMENT 'Event time up to which click-through rates are unbiased';
