-- Rollups: what the views over long spans read instead of labels. They are a cache that can be thrown away: each
-- day of event time is counted from labels FINAL (corrections applied) into a generation of its own, and a view takes
-- a generation only while nothing has come for its hours since. Rules and reasons: docs/adr/0017-rollups-by-day.md.

-- label_hours: how many rows were ever sent to labels, by hour of event time. The sum grows with every insert, also of
-- rows that are there already, so an equal sum means that nothing has come. Who changes labels by other means than
-- inserts adds 1 to the hours concerned (DB.Touch).
CREATE TABLE IF NOT EXISTS {{local "label_hours"}} {{cluster}}(
    hour DateTime('UTC')                      COMMENT 'start, of event time',
    rows SimpleAggregateFunction(sum, UInt64) COMMENT 'rows sent, repetitions included'
)
ENGINE = {{engine "AggregatingMergeTree"}}
PARTITION BY toYYYYMM(hour)
ORDER BY hour
SETTINGS {{dedup 100000}};

{{distributed "label_hours" "sipHash64(hour)"}}

-- label_partitions: how far each partition of labels.v1 has come. Maxima, so repetitions change nothing.
CREATE TABLE IF NOT EXISTS {{local "label_partitions"}} {{cluster}}(
    partition   UInt16                                                COMMENT 'of labels.v1',
    rows        SimpleAggregateFunction(sum, UInt64)                  COMMENT 'rows sent, repetitions included',
    event_time  SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
    watermark   SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
    offset      SimpleAggregateFunction(max, Int64)                   COMMENT 'in labels.v1',
    inserted_at SimpleAggregateFunction(max, DateTime('UTC'))
)
ENGINE = {{engine "AggregatingMergeTree"}}
ORDER BY partition
SETTINGS {{dedup 100000}};

{{distributed "label_partitions" "sipHash64(partition)"}}

CREATE MATERIALIZED VIEW IF NOT EXISTS label_hours_feed {{cluster}}TO {{local "label_hours"}} AS
SELECT toStartOfHour(toDateTime(event_time, 'UTC')) AS hour, count() AS rows FROM {{local "labels"}} GROUP BY hour;

CREATE MATERIALIZED VIEW IF NOT EXISTS label_partitions_feed {{cluster}}TO {{local "label_partitions"}} AS
SELECT partition, count() AS rows, max(labels.event_time) AS event_time, max(labels.watermark) AS watermark, max(labels.offset) AS offset, max(labels.inserted_at) AS inserted_at
FROM {{local "labels"}} AS labels GROUP BY partition;

-- Rows that were there before this file. Counting them twice, should it be run again, does no harm.
INSERT INTO label_hours (hour, rows)
SELECT toStartOfHour(toDateTime(event_time, 'UTC')) AS hour, count() FROM labels GROUP BY hour;

INSERT INTO label_partitions (partition, rows, event_time, watermark, offset, inserted_at)
SELECT partition, count(), max(event_time), max(watermark), max(offset), max(inserted_at) FROM labels GROUP BY partition;

-- rollups: the generation of each day, and what it was made of. The last one counts.
CREATE TABLE IF NOT EXISTS {{local "rollups"}} {{cluster}}(
    day        Date                 COMMENT 'of event time, UTC',
    generation UInt64               COMMENT 'names the rows of the rollup tables; grows',
    until      DateTime('UTC')      COMMENT 'end of what was counted: the next day, or the hour that was open',
    touched    UInt64               COMMENT 'sum of label_hours.rows from the day until then, read before the count began',
    rolled     DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'wall clock of the count'
)
ENGINE = {{engine "ReplacingMergeTree" "generation"}} ORDER BY day;

{{distributed "rollups" "sipHash64(day)"}}

-- The rollups proper. By the hour without creative and placement, which would make a row of every few labels. A generation is a partition: it is replaced in a moment and dropped without rewriting anything.
CREATE TABLE IF NOT EXISTS {{local "rollup_ctr_hours"}} {{cluster}}(
    day           Date                   CODEC(ZSTD(1)),
    generation    UInt64                 CODEC(ZSTD(1)),
    hour          DateTime('UTC')        CODEC(Delta, ZSTD(1)),
    experiment    LowCardinality(String) CODEC(ZSTD(1)),
    variant       LowCardinality(String) CODEC(ZSTD(1)),
    product       LowCardinality(String) CODEC(ZSTD(1)),
    category      LowCardinality(String) CODEC(ZSTD(1)),
    model_version LowCardinality(String) CODEC(ZSTD(1)),
    impressions   UInt64                 CODEC(T64, ZSTD(1)),
    clicks        UInt64                 COMMENT 'impressions with a click' CODEC(T64, ZSTD(1))
)
ENGINE = {{engine "MergeTree"}}
PARTITION BY (day, generation)
ORDER BY (experiment, product, hour, variant, category, model_version);

{{distributed "rollup_ctr_hours" "sipHash64(product)"}}

CREATE TABLE IF NOT EXISTS {{local "rollup_ctr_days"}} {{cluster}}(
    day           Date                   CODEC(ZSTD(1)),
    generation    UInt64                 CODEC(ZSTD(1)),
    experiment    LowCardinality(String) CODEC(ZSTD(1)),
    variant       LowCardinality(String) CODEC(ZSTD(1)),
    product       LowCardinality(String) CODEC(ZSTD(1)),
    category      LowCardinality(String) CODEC(ZSTD(1)),
    creative      LowCardinality(String) CODEC(ZSTD(1)),
    placement     LowCardinality(String) CODEC(ZSTD(1)),
    model_version LowCardinality(String) CODEC(ZSTD(1)),
    impressions   UInt64                 CODEC(T64, ZSTD(1)),
    clicks        UInt64                 CODEC(T64, ZSTD(1)),
    first_seen    DateTime64(3, 'UTC')   CODEC(Delta, ZSTD(1)),
    last_seen     DateTime64(3, 'UTC')   CODEC(Delta, ZSTD(1))
)
ENGINE = {{engine "MergeTree"}}
PARTITION BY (day, generation)
ORDER BY (product, creative, placement, experiment, variant, category, model_version);

{{distributed "rollup_ctr_days" "sipHash64(product)"}}

-- By user, for sums over users: squares of a user's counts cannot be had from counts by hour.
CREATE TABLE IF NOT EXISTS {{local "rollup_users"}} {{cluster}}(
    day         Date                   CODEC(ZSTD(1)),
    generation  UInt64                 CODEC(ZSTD(1)),
    experiment  LowCardinality(String) CODEC(ZSTD(1)),
    variant     LowCardinality(String) CODEC(ZSTD(1)),
    user        UInt64                 COMMENT 'salted hash of the user' CODEC(Delta, ZSTD(1)),
    impressions UInt32                 CODEC(T64, ZSTD(1)),
    clicks      UInt32                 CODEC(T64, ZSTD(1))
)
ENGINE = {{engine "MergeTree"}}
PARTITION BY (day, generation)
ORDER BY (experiment, variant, user);

{{distributed "rollup_users" "sipHash64(user)"}}
