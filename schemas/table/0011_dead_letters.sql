-- dead_letters: records that nobody could use (dlq.v1), by place of the record, with the beginning of what was sent. It may name people,
-- so it is kept for 30 days, and an erasure looks through it.
CREATE TABLE IF NOT EXISTS {{local "dead_letters"}} {{cluster}}(
    reason           LowCardinality(String) COMMENT 'schemas.DeadLetterReason',
    detail           String                 COMMENT 'in words, cut at 500 bytes',
    impression_id    UUID                   COMMENT 'of the record\'s key; zero: it has none that is an id',
    time             DateTime64(3, 'UTC')   COMMENT 'of the record: arrival, or event time',
    topic            LowCardinality(String) COMMENT 'where the record was read',
    partition        UInt16,
    offset           Int64,
    bytes            UInt32                 COMMENT 'of the record',
    sample           String                 COMMENT 'its first 500 bytes' CODEC(ZSTD(1)),
    source           LowCardinality(String) COMMENT 'id of dlq.v1',
    source_partition UInt16,
    source_offset    Int64,
    inserted_at      DateTime('UTC') DEFAULT now()
)
ENGINE = {{engine "ReplacingMergeTree"}} ORDER BY (source, source_partition, source_offset)
TTL inserted_at + INTERVAL 30 DAY;

{{distributed "dead_letters" "sipHash64(source_partition, source_offset)"}}
