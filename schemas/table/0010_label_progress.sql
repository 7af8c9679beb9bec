-- label_progress: how far the join has come in each partition of labels.v1, with everything up to there in labels. The sink
-- writes it: the joiner's committed watermark, once all that had been written by then is inserted. Labels alone do not
-- say it: a partition of positives only, or an idle one, has no later label that carries the watermark. source is the topic's id, so
-- what a topic that was made anew has left behind holds nothing up. Maxima, so repetitions change nothing.
CREATE TABLE IF NOT EXISTS {{local "label_progress"}} {{cluster}}(
    source    LowCardinality(String)                               COMMENT 'id of labels.v1',
    partition UInt16                                               COMMENT 'of labels.v1; all of them are written together',
    watermark SimpleAggregateFunction(max, DateTime64(3, 'UTC'))   COMMENT '1970: none yet',
    time      SimpleAggregateFunction(max, DateTime64(3, 'UTC'))   COMMENT 'wall clock; the newest source counts'
)
ENGINE = {{engine "AggregatingMergeTree"}} ORDER BY (source, partition);

{{distributed "label_progress" "sipHash64(source)"}}

-- label_blocks: what was inserted into labels, summed by minute: one row for each block, partition of labels.v1 and minute. The audit
-- adds these up instead of reading the labels. A block that is sent again replaces itself, by its offsets. first_offset below 0
-- takes away what an erasure has deleted.
CREATE TABLE IF NOT EXISTS {{local "label_blocks"}} {{cluster}}(
    partition    UInt16          COMMENT 'of labels.v1',
    minute       DateTime('UTC') COMMENT 'start, of impression time',
    first_offset Int64           COMMENT 'of the rows, in labels.v1',
    last_offset  Int64,
    labels       UInt64          COMMENT 'rows, every version counted',
    positive     UInt64          COMMENT 'of them positive or corrected',
    hash_xor     UInt64          COMMENT 'groupBitXor(cityHash64(UUIDToNum(impression_id)))',
    hash_sum     UInt64          COMMENT 'wrapping sum of the same'
)
ENGINE = {{engine "ReplacingMergeTree"}}
PARTITION BY toYYYYMM(minute)
ORDER BY (partition, minute, first_offset, last_offset)
SETTINGS {{dedup 100000}};

{{distributed "label_blocks" "sipHash64(partition)"}}

CREATE MATERIALIZED VIEW IF NOT EXISTS label_blocks_feed {{cluster}}TO {{local "label_blocks"}} AS
SELECT partition, toStartOfMinute(toDateTime(event_time, 'UTC')) AS minute, min(offset) AS first_offset, max(offset) AS last_offset,
    count() AS labels, countIf(kind IN ('positive', 'corrected')) AS positive,
    groupBitXor(cityHash64(UUIDToNum(impression_id))) AS hash_xor, sum(cityHash64(UUIDToNum(impression_id))) AS hash_sum
FROM {{local "labels"}} GROUP BY partition, minute;

-- The span that is audited all the time, of rows that were there before this file.
-- One shard asks all: a shard that is asked to insert its own part does not know the database that the query names without saying.
INSERT INTO label_blocks (partition, minute, first_offset, last_offset, labels, positive, hash_xor, hash_sum)
SETTINGS parallel_distributed_insert_select = 0
SELECT partition, toStartOfMinute(toDateTime(event_time, 'UTC')) AS m, min(offset), max(offset),
    count(), countIf(kind IN ('positive', 'corrected')),
    groupBitXor(cityHash64(UUIDToNum(impression_id))), sum(cityHash64(UUIDToNum(impression_id)))
FROM labels FINAL
WHERE event_time >= (SELECT max(event_time) FROM labels) - INTERVAL 3 DAY
GROUP BY partition, m;
