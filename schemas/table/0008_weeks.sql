-- Totals of users by week: what questions about experiments read instead of days, where a week's days have stood still
-- for a while. A level above the rollups of 0006, made of them and checked by them: docs/adr/0026-users-by-week.md.

-- label_arms: every pair of experiment and variant that labels ever had. Grouping by two names and a user costs three times
-- what grouping by two numbers does, so totals carry the number of an arm, and this table gives the names back.
CREATE TABLE IF NOT EXISTS {{local "label_arms"}} {{cluster}}(
    experiment LowCardinality(String) COMMENT 'empty: none',
    variant    LowCardinality(String)
)
ENGINE = {{engine "ReplacingMergeTree"}} ORDER BY (experiment, variant)
SETTINGS {{dedup 100000}};

{{distributed "label_arms" "sipHash64(experiment)"}}

CREATE MATERIALIZED VIEW IF NOT EXISTS label_arms_feed {{cluster}}TO {{local "label_arms"}} AS
SELECT DISTINCT experiment, variant FROM {{local "labels"}};

-- Labels that were there before this file.
INSERT INTO label_arms (experiment, variant) SELECT DISTINCT experiment, variant FROM labels;

-- rollup_weeks: the generation of each week, and the generations of days that it adds up. The last one counts.
CREATE TABLE IF NOT EXISTS {{local "rollup_weeks"}} {{cluster}}(
    week       Date                       COMMENT 'its Monday, of event time, UTC',
    generation UInt64                     COMMENT 'names the rows of rollup_users_weeks; grows',
    days       Array(Tuple(Date, UInt64)) COMMENT 'day and generation of each day that is added up, in order',
    rolled     DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'wall clock'
)
ENGINE = {{engine "ReplacingMergeTree" "generation"}} ORDER BY week;

{{distributed "rollup_weeks" "sipHash64(week)"}}

-- Users of experiments only: what is outside of them is asked for by day. An erasure goes through the tables in the order of
-- their names: after rollup_users, so that a week that is made meanwhile has lost the user too.
CREATE TABLE IF NOT EXISTS {{local "rollup_users_weeks"}} {{cluster}}(
    week        Date                   CODEC(ZSTD(1)),
    generation  UInt64                 CODEC(ZSTD(1)),
    arm         UInt64                 COMMENT 'of experiment and variant, see view experiment_arms' CODEC(Delta, ZSTD(1)),
    user        UInt64                 COMMENT 'salted hash of the user' CODEC(Delta, ZSTD(1)),
    impressions UInt32                 CODEC(T64, ZSTD(1)),
    clicks      UInt32                 CODEC(T64, ZSTD(1))
)
ENGINE = {{engine "MergeTree"}}
PARTITION BY (week, generation)
ORDER BY (arm, user);

{{distributed "rollup_users_weeks" "sipHash64(user)"}}
