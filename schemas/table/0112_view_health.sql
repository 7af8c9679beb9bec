-- freshness
-- Question: how far behind is the warehouse?
-- Columns:  partition (of labels.v1); rows, newest_event, newest_watermark (event time), newest_offset, inserted_at (wall
--           clock, UTC, of the newest insert), idle_seconds (since then).
-- Example:  SELECT max(idle_seconds) FROM freshness
-- Note:     rows counts what was sent, a block that was sent again under another token included. Partitions that labels.v1 had
--           before it was made anew are left out.
-- Cost:     a few rows.
CREATE OR REPLACE VIEW freshness {{cluster}}AS
SELECT partition, sum(p.rows) AS rows, max(event_time) AS newest_event, max(watermark) AS newest_watermark,
    max(offset) AS newest_offset, max(p.inserted_at) AS inserted_at, dateDiff('second', inserted_at, now()) AS idle_seconds
FROM label_partitions AS p
WHERE (SELECT count() FROM label_progress) = 0
    OR partition GLOBAL IN (SELECT partition FROM label_progress WHERE source = (SELECT argMax(source, time) FROM label_progress))
GROUP BY partition
COMMENT 'How far behind the warehouse is, per partition of labels.v1';

-- audit_mismatch
-- Question: is every label of the join here exactly once?
-- Columns:  partition (of labels.v1), minute (of impression time); by the joiner (audit.v1): want_labels, want_positive,
--           want_xor, want_sum; here: labels, positive, hash_xor, hash_sum. Only minutes that differ; empty = exact.
-- Rule:     every version of a label counts once, corrections too, as in audit.v1. The hash is
--           cityHash64(UUIDToNum(impression_id)): CityHash64 1.0.2 over the 16 raw bytes of the id, as
--           go-faster/city CH64 computes it.
-- Note:     labels and audit travel separately: a minute may differ for the second between their inserts. `ctrloop audit`
--           knows what is on its way.
-- Example:  SELECT count() FROM audit_mismatch
-- Cost:     one FINAL scan of labels with a hash per row.
CREATE OR REPLACE VIEW audit_mismatch {{cluster}}AS
SELECT partition, minute,
    sum(w_labels) AS want_labels, sum(h_labels) AS labels, sum(w_positive) AS want_positive, sum(h_positive) AS positive,
    groupBitXor(w_xor) AS want_xor, groupBitXor(h_xor) AS hash_xor, sum(w_sum) AS want_sum, sum(h_sum) AS hash_sum
FROM
(
    SELECT partition, minute, labels AS w_labels, positive AS w_positive, hash_xor AS w_xor, hash_sum AS w_sum,
        toUInt64(0) AS h_labels, toUInt64(0) AS h_positive, toUInt64(0) AS h_xor, toUInt64(0) AS h_sum
    FROM audit FINAL
    UNION ALL
    SELECT partition, toStartOfMinute(toDateTime(event_time, 'UTC')) AS minute, 0, 0, 0, 0,
        count(), countIf(kind IN ('positive', 'corrected')),
        groupBitXor(cityHash64(UUIDToNum(impression_id))), sum(cityHash64(UUIDToNum(impression_id)))
    FROM labels FINAL
    GROUP BY partition, minute
)
GROUP BY partition, minute
HAVING want_labels != labels OR want_positive != positive OR want_xor != hash_xor OR want_sum != hash_sum
COMMENT 'Minutes in which the labels here differ from what the joiner says it made';

-- audit_blocks
-- Question: in which minutes do the blocks that were inserted differ from what the joiner says it made?
-- Columns:  partition (of labels.v1), minute (of impression time). Empty: the sums are equal.
-- Note:     cheaper than audit_mismatch and weaker: it adds up what was inserted and does not look at what is there. A minute
--           that is in it must be looked at in audit_mismatch.
-- Example:  SELECT count() FROM audit_blocks
-- Cost:     one row for each block and minute, and each record of audit.v1.
CREATE OR REPLACE VIEW audit_blocks {{cluster}}AS
SELECT partition, minute
FROM
(
    SELECT partition, minute, labels, positive, hash_xor, hash_sum FROM audit FINAL
    UNION ALL
    SELECT partition, minute, toUInt64(-labels), toUInt64(-positive), hash_xor, toUInt64(-hash_sum) FROM label_blocks FINAL
)
GROUP BY partition, minute
HAVING sum(labels) != 0 OR sum(positive) != 0 OR groupBitXor(hash_xor) != 0 OR sum(hash_sum) != 0
COMMENT 'Minutes in which the sums of inserted blocks differ from what the joiner says it made';

-- rejected
-- Question: which events became no label of their own, and why?
-- Columns:  kind (dead letter: nobody could use it; late: the join could not), reason (closed lists), detail (in words), impression_id
--           (zero: not known), time (of the record), topic, partition, offset (where it was read), bytes, sample (its first 500 bytes; of
--           late events empty).
-- Note:     dead letters are kept for 30 days after their insert, late events as labels are (sink.retention). click_after_window: a corrected
--           label follows.
-- Example:  SELECT kind, reason, count(), any(detail) FROM rejected GROUP BY kind, reason ORDER BY 3 DESC
-- Cost:     one scan of both tables.
CREATE OR REPLACE VIEW rejected {{cluster}}AS
SELECT 'dead letter' AS kind, toString(reason) AS reason, detail, impression_id, time, toString(topic) AS topic, partition, offset, bytes, sample
FROM dead_letters FINAL
UNION ALL
SELECT 'late', toString(reason), '', impression_id, event_time, toString(topic), partition, offset, toUInt32(0), ''
FROM late FINAL
COMMENT 'Events that became no label of their own, with the reason';

-- trace_impression
-- Question: what does the warehouse know of one impression?
-- Columns:  those of labels (arm_share is NULL where it was not said), one row a version, oldest first, and: age_ms (watermark -
--           event time when the label was made), latest (1: the version that counts), counts (1: labels_mature has it), description and blocked (of the creative).
-- Example:  SELECT * FROM trace_impression(id = '0199c2d7-1c00-7aaa-8bbb-0123456789ab')
-- Cost:     one day of one column, then a few rows: the time is read from the id.
CREATE OR REPLACE VIEW trace_impression {{cluster}}AS
WITH toUUID({id:String}) AS wanted
SELECT labels.*, toUnixTimestamp64Milli(watermark) - toUnixTimestamp64Milli(event_time) AS age_ms,
    version = max(version) OVER () AS latest,
    latest AND bot = 0 AND {{trusted}} AND event_time <= (SELECT horizon FROM label_horizon) AND {{has_time}} AS counts,
    known.description AS description, known.blocked AS blocked
FROM (SELECT * FROM labels FINAL PREWHERE event_time = UUIDv7ToDateTime(wanted, 'UTC') WHERE impression_id = wanted) AS labels
LEFT JOIN (SELECT toLowCardinality(id) AS creative, description, blocked FROM creatives FINAL) AS known USING (creative)
ORDER BY version
COMMENT 'All versions of one impression, by its id';
