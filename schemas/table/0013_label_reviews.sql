-- label_reviews: what a person has said of labels that were made while a circuit breaker was open, by hour, partition, product and
-- placement. The last word on a cell counts; earlier ones stay for the record. 'cleared': its labels count again, those that come
-- later into the same cell too. 'confirmed': they were looked at and stay out. 'open': the word before is taken back.
CREATE TABLE IF NOT EXISTS {{local "label_reviews"}} {{cluster}}(
    hour      DateTime('UTC')        COMMENT 'start, of impression time',
    partition UInt16                 COMMENT 'of labels.v1',
    product   LowCardinality(String),
    placement LowCardinality(String),
    verdict   Enum8('open' = 0, 'cleared' = 1, 'confirmed' = 2),
    by        String                 COMMENT 'who said so',
    reason    String,
    labels    UInt64                 COMMENT 'suspect ones in the cell when it was said',
    time      DateTime64(6, 'UTC')   DEFAULT now64(6)
)
ENGINE = {{engine "ReplacingMergeTree"}} ORDER BY (hour, partition, product, placement, time);

{{distributed "label_reviews" "sipHash64(hour)"}}

-- A review changes what its hours give, as an insert does: their day is rolled up anew.
CREATE MATERIALIZED VIEW IF NOT EXISTS label_reviews_feed {{cluster}}TO {{local "label_hours"}} AS
SELECT hour, count() AS rows FROM {{local "label_reviews"}} GROUP BY hour;
