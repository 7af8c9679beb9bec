-- labels: the join's verdicts, one row per impression and version (labels.v1, exactly once).
--
-- Key. Every column of it is fixed by the impression and the version, so a row that arrives twice replaces
-- itself (second belt behind the insert token). The version is part of the key, not the engine's version
-- column: the audit counts every version row, also after merges; labels_latest picks the last one.
-- Order. An experiment is one range of the table; inside it (and for '' outside of experiments) a product
-- is one, in time order, which also makes event_time delta-code to about a byte.
-- Partition. By day of event time, a function of the impression id, so FINAL never has to look across
-- partitions (do_not_merge_across_partitions_select_final).
-- Codecs. A hash does not compress, so user is stored as it is; the rest was measured at 37 bytes a row in all
-- with random users and propensities.
-- LowCardinality where values are thousands at most. The window of insert tokens is counted in blocks per
-- partition of the table: at one insert a second of 8 partitions of the topic it spans 3.5 hours.
CREATE TABLE IF NOT EXISTS {{local "labels"}} {{cluster}}(
    impression_id  UUID                                   COMMENT 'UUIDv7, carries the event time; raw bytes: UUIDToNum(impression_id)' CODEC(ZSTD(1)),
    event_time     DateTime64(3, 'UTC')                   COMMENT 'time of the impression' CODEC(Delta, ZSTD(1)),
    version        UInt32                                 COMMENT '1, then +1 with each correction' CODEC(ZSTD(1)),
    user           UInt64                                 COMMENT 'salted hash of the user' CODEC(NONE),
    product        LowCardinality(String),
    creative       LowCardinality(String),
    placement      LowCardinality(String)                 COMMENT 'slot',
    position       UInt16                                 COMMENT '1 = first' CODEC(ZSTD(1)),
    campaign       LowCardinality(String),
    category       LowCardinality(String)                 COMMENT 'department/category',
    experiment     LowCardinality(String)                 COMMENT 'empty: none',
    variant        LowCardinality(String),
    model_version  LowCardinality(String)                 COMMENT 'prompt model that wrote the creative',
    policy         LowCardinality(String)                 COMMENT 'snapshot of the decision policy',
    propensity     Float64                                COMMENT 'probability with which the creative was chosen, (0, 1]',
    bot            UInt8                                  COMMENT '1: marked as non-human by the edge' CODEC(ZSTD(1)),
    kind           Enum8('unspecified' = 0, 'positive' = 1, 'final_negative' = 2, 'provisional_negative' = 3, 'corrected' = 4) CODEC(ZSTD(1)),
    clicked        UInt8                                  CODEC(ZSTD(1)),
    click_delay_ms Int64                                  COMMENT 'click time - impression time, 0 without a click' CODEC(T64, ZSTD(1)),
    clicks         UInt32                                 COMMENT 'clicks seen when the label was made' CODEC(ZSTD(1)),
    weight         Float64                                COMMENT 'sampling weight, 1 unless the joiner samples' CODEC(ZSTD(1)),
    watermark      DateTime64(3, 'UTC')                   COMMENT 'of the partition, when the label was made' CODEC(Delta, ZSTD(1)),
    partition      UInt16                                 COMMENT 'of labels.v1' CODEC(ZSTD(1)),
    offset         Int64                                  COMMENT 'in labels.v1' CODEC(Delta, ZSTD(1)),
    inserted_at    DateTime('UTC') DEFAULT now()          COMMENT 'wall clock of the insert' CODEC(Delta, ZSTD(1))
)
ENGINE = {{engine "ReplacingMergeTree"}}
PARTITION BY toYYYYMMDD(event_time)
ORDER BY (experiment, product, event_time, impression_id, version)
SETTINGS {{dedup 100000}};

{{distributed "labels" "sipHash64(impression_id)"}}
