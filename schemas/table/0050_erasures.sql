-- erasures: whose events were erased, with the proof: one row for each run and table. The hash of the user stays
-- here, so that a warehouse that is rebuilt from the topics can be cleared again.
CREATE TABLE IF NOT EXISTS {{local "erasures"}} {{cluster}}(
    user        UInt64                 COMMENT 'salted hash of the user',
    until       DateTime('UTC')        COMMENT 'rows inserted up to then were erased; names the run',
    table       LowCardinality(String) COMMENT 'empty: the run itself',
    state       Enum8('begun' = 1, 'counted' = 2, 'done' = 3),
    rows_before UInt64,
    rows_after  UInt64,
    query       String                 COMMENT 'counts what is left; 0 proves the erasure',
    time        DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = {{engine "ReplacingMergeTree" "time"}} ORDER BY (user, until, table);

{{distributed "erasures" "sipHash64(user)"}}
