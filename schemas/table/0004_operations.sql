-- audit: what the joiner says that it put into labels.v1 (audit.v1): one row per transaction, partition and
-- minute; sums over rows are the truth that labels is held against. The key is the place of the record.
CREATE TABLE IF NOT EXISTS {{local "audit"}} {{cluster}}(
    partition     UInt16          COMMENT 'of labels.v1',
    minute        DateTime('UTC') COMMENT 'start, of impression time',
    labels        UInt64          COMMENT 'rows, every version counted',
    positive      UInt64          COMMENT 'of them positive or corrected',
    hash_xor      UInt64          COMMENT 'groupBitXor(cityHash64(UUIDToNum(impression_id)))',
    hash_sum      UInt64          COMMENT 'wrapping sum of the same',
    source        LowCardinality(String) COMMENT 'id of audit.v1',
    source_partition UInt16,
    source_offset Int64
)
ENGINE = {{engine "ReplacingMergeTree"}}
PARTITION BY toYYYYMM(minute)
ORDER BY (partition, minute, source, source_partition, source_offset);

{{distributed "audit" "sipHash64(partition)"}}

-- late: events that the join could not use for a label of their own (late.v1), by place of the record.
CREATE TABLE IF NOT EXISTS {{local "late"}} {{cluster}}(
    reason           LowCardinality(String) COMMENT 'impression_after_close, click_after_window, click_without_impression',
    impression_id    UUID,
    event_time       DateTime64(3, 'UTC'),
    watermark        DateTime64(3, 'UTC'),
    topic            LowCardinality(String) COMMENT 'where the event was read',
    partition        UInt16,
    offset           Int64,
    source           LowCardinality(String) COMMENT 'id of late.v1',
    source_partition UInt16,
    source_offset    Int64
)
ENGINE = {{engine "ReplacingMergeTree"}} ORDER BY (source, source_partition, source_offset);

{{distributed "late" "sipHash64(source_partition, source_offset)"}}

-- exposures: first time that a unit met a variant, once per unit and day.
CREATE TABLE IF NOT EXISTS {{local "exposures"}} {{cluster}}(
    experiment LowCardinality(String),
    unit       String COMMENT 'user hash or product id, by the unit of the experiment',
    day        Date,
    variant    LowCardinality(String),
    time       DateTime64(3, 'UTC')
)
ENGINE = {{engine "ReplacingMergeTree"}} ORDER BY (experiment, unit, day, variant);

{{distributed "exposures" "sipHash64(unit)"}}

-- decisions: what the ad decision chose from, with the exact propensities (for off-policy evaluation).
CREATE TABLE IF NOT EXISTS {{local "decisions"}} {{cluster}}(
    impression_id UUID                 CODEC(ZSTD(1)),
    time          DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    user          UInt64               CODEC(ZSTD(1)),
    product       LowCardinality(String),
    placement     LowCardinality(String),
    experiment    LowCardinality(String),
    variant       LowCardinality(String),
    policy        LowCardinality(String),
    candidates    Array(LowCardinality(String)) COMMENT 'creatives',
    propensities  Array(Float64)                COMMENT 'of the candidates, sum 1',
    chosen        LowCardinality(String)
)
ENGINE = {{engine "ReplacingMergeTree"}}
PARTITION BY toYYYYMMDD(time)
ORDER BY (product, time, impression_id);

{{distributed "decisions" "sipHash64(impression_id)"}}

-- experiment_looks: every look of the rollout controller at an experiment, with the figures it acted on.
CREATE TABLE IF NOT EXISTS {{local "experiment_looks"}} {{cluster}}(
    experiment LowCardinality(String),
    time       DateTime64(3, 'UTC'),
    step       UInt16,
    share      Float64                COMMENT 'of the treatment',
    action     LowCardinality(String) COMMENT 'promote, hold, rollback, inconclusive',
    rule       LowCardinality(String),
    lift       Float64                COMMENT 'relative',
    lift_low   Float64,
    lift_high  Float64,
    p          Float64                COMMENT 'always valid',
    srm_p      Float64                COMMENT 'of the sample-ratio test',
    impressions Int64
)
ENGINE = {{engine "ReplacingMergeTree"}} ORDER BY (experiment, time, step);

{{distributed "experiment_looks" "sipHash64(experiment)"}}

-- parameters of the join that views need; written by Migrate.
CREATE TABLE IF NOT EXISTS {{local "parameters"}} {{cluster}}(
    name  LowCardinality(String) COMMENT 'window_ms, bucket_ms',
    value Int64,
    time  DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = {{engine "ReplacingMergeTree" "time"}} ORDER BY name;

{{distributed "parameters" "sipHash64(name)"}}
