-- control_log: the mirror of control.v1, every command in order, with the verdict of the fold.
-- source is the topic's id: offsets of a topic that was made anew do not meet older ones.
CREATE TABLE IF NOT EXISTS {{local "control_log"}} {{cluster}}(
    source   LowCardinality(String) COMMENT 'id of the topic',
    offset   Int64,
    id       String,
    type     LowCardinality(String) COMMENT 'model.registered, model.promoted, experiment.created, ...',
    entity   String                 COMMENT 'model/..., route/..., experiment/..., job/..., dataset/..., breaker/...',
    expect   Nullable(Int64)        COMMENT 'version of the entity that the command was decided on',
    actor    LowCardinality(String),
    note     String,
    time     DateTime64(3, 'UTC'),
    data     String                 COMMENT 'JSON',
    rejected String                 COMMENT 'why the fold refused it; empty: applied'
)
ENGINE = {{engine "ReplacingMergeTree"}} ORDER BY (source, offset);

{{distributed "control_log" "sipHash64(source)"}}

-- model_versions, jobs, job_metrics and datasets are projections of the applied commands. Their keys make
-- them idempotent, so that mirroring the log again changes nothing.
CREATE TABLE IF NOT EXISTS {{local "model_versions"}} {{cluster}}(
    version    String,
    logical    LowCardinality(String) COMMENT 'prompt, reward',
    artifact   String                 COMMENT 'digest in the artifact store',
    base       String                 COMMENT 'digest of the base model; empty for a base',
    job        String,
    dataset    String,
    reward     String                 COMMENT 'reward model that ranked its pairs',
    parents    Array(String),
    labels_to  DateTime64(3, 'UTC')   COMMENT 'newest click that it has learned from, event time',
    metrics    String                 COMMENT 'JSON',
    gates      String                 COMMENT 'JSON',
    registered DateTime64(3, 'UTC')
)
ENGINE = {{engine "ReplacingMergeTree"}} ORDER BY version;

{{distributed "model_versions" "sipHash64(version)"}}

CREATE MATERIALIZED VIEW IF NOT EXISTS model_versions_feed {{cluster}}TO {{local "model_versions"}} AS
SELECT JSONExtractString(data, 'version') AS version, JSONExtractString(data, 'logical') AS logical,
    JSONExtractString(data, 'artifact') AS artifact, JSONExtractString(data, 'base') AS base,
    JSONExtractString(data, 'job') AS job, JSONExtractString(data, 'dataset') AS dataset,
    JSONExtractString(data, 'reward') AS reward, JSONExtract(data, 'parents', 'Array(String)') AS parents,
    fromUnixTimestamp64Milli(JSONExtractInt(data, 'labels_to_ms'), 'UTC') AS labels_to,
    JSONExtractRaw(data, 'metrics') AS metrics, JSONExtractRaw(data, 'gates') AS gates, time AS registered
FROM {{local "control_log"}} WHERE rejected = '' AND type = 'model.registered';

-- jobs: one row per job and step of its life; kind and reason come with the submission.
CREATE TABLE IF NOT EXISTS {{local "jobs"}} {{cluster}}(
    job      String,
    time     DateTime64(3, 'UTC'),
    state    LowCardinality(String) COMMENT 'submitted, started, finished, failed',
    kind     LowCardinality(String) COMMENT 'pretrain, reward, rounds',
    reason   String,
    attempt  UInt32,
    artifact String,
    class    LowCardinality(String) COMMENT 'failure class',
    error    String
)
ENGINE = {{engine "ReplacingMergeTree"}} ORDER BY (job, time, state);

{{distributed "jobs" "sipHash64(job)"}}

CREATE MATERIALIZED VIEW IF NOT EXISTS jobs_feed {{cluster}}TO {{local "jobs"}} AS
SELECT substring(entity, 5) AS job, time, substring(type, 5) AS state, JSONExtractString(data, 'kind') AS kind,
    JSONExtractString(data, 'reason') AS reason, toUInt32(JSONExtractUInt(data, 'attempt')) AS attempt,
    JSONExtractString(data, 'artifact') AS artifact, JSONExtractString(data, 'class') AS class,
    JSONExtractString(data, 'error') AS error
FROM {{local "control_log"}} WHERE rejected = '' AND startsWith(type, 'job.');

CREATE TABLE IF NOT EXISTS {{local "job_metrics"}} {{cluster}}(
    job   String,
    name  LowCardinality(String),
    value Float64,
    time  DateTime64(3, 'UTC')
)
ENGINE = {{engine "ReplacingMergeTree" "time"}} ORDER BY (job, name);

{{distributed "job_metrics" "sipHash64(job)"}}

CREATE MATERIALIZED VIEW IF NOT EXISTS job_metrics_feed {{cluster}}TO {{local "job_metrics"}} AS
SELECT substring(entity, 5) AS job, metric.1 AS name, metric.2 AS value, time
FROM {{local "control_log"}}
ARRAY JOIN JSONExtractKeysAndValues(data, 'metrics', 'Float64') AS metric
WHERE rejected = '' AND startsWith(type, 'job.');

CREATE TABLE IF NOT EXISTS {{local "datasets"}} {{cluster}}(
    digest    String,
    pairs     Int64,
    products  Int64,
    from_time DateTime64(3, 'UTC') COMMENT 'evidence span, event time',
    to_time   DateTime64(3, 'UTC'),
    policy    LowCardinality(String),
    seed      UInt64,
    built     DateTime64(3, 'UTC')
)
ENGINE = {{engine "ReplacingMergeTree"}} ORDER BY digest;

{{distributed "datasets" "sipHash64(digest)"}}

CREATE MATERIALIZED VIEW IF NOT EXISTS datasets_feed {{cluster}}TO {{local "datasets"}} AS
SELECT JSONExtractString(data, 'digest') AS digest, JSONExtractInt(data, 'pairs') AS pairs,
    JSONExtractInt(data, 'products') AS products, fromUnixTimestamp64Milli(JSONExtractInt(data, 'from_ms'), 'UTC') AS from_time,
    fromUnixTimestamp64Milli(JSONExtractInt(data, 'to_ms'), 'UTC') AS to_time, JSONExtractString(data, 'policy') AS policy,
    JSONExtractUInt(data, 'seed') AS seed, time AS built
FROM {{local "control_log"}} WHERE rejected = '' AND type = 'dataset.built';
