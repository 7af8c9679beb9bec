-- products: what can be advertised. One row per id, the last insert wins.
CREATE TABLE IF NOT EXISTS {{local "products"}} {{cluster}}(
    id         String,
    title      String,
    category   LowCardinality(String) COMMENT 'department/category',
    department LowCardinality(String),
    holdout    UInt8                  COMMENT '1: no training may see it'
)
ENGINE = {{engine "ReplacingMergeTree"}} ORDER BY id;

{{distributed "products" "sipHash64(id)"}}

-- creatives: generated ads (creatives.v1). One row per id, the last insert wins.
CREATE TABLE IF NOT EXISTS {{local "creatives"}} {{cluster}}(
    id            String                 COMMENT 'c- and 16 hex digits of the image digest',
    product       LowCardinality(String),
    category      LowCardinality(String),
    model_version LowCardinality(String) COMMENT 'prompt model that wrote the description',
    description   String                 COMMENT 'the background in words',
    backend       LowCardinality(String) COMMENT 'what drew it',
    seed          UInt64,
    asset         String                 COMMENT 'digest of the PNG in the artifact store',
    width_px      UInt16,
    height_px     UInt16,
    valid         UInt8                  COMMENT '1: the description was well formed',
    prior         Float64                COMMENT 'score of the reward model, [0, 1]',
    blocked       String                 COMMENT 'why it must not serve; empty: it may',
    created       DateTime64(3, 'UTC')
)
ENGINE = {{engine "ReplacingMergeTree"}} ORDER BY id;

{{distributed "creatives" "sipHash64(id)"}}

-- pairs: preference pairs (pairs.v1). The id is a digest of what the pair was made from.
CREATE TABLE IF NOT EXISTS {{local "pairs"}} {{cluster}}(
    id                   String,
    product              LowCardinality(String),
    category             LowCardinality(String),
    placement            LowCardinality(String),
    from_time            DateTime64(3, 'UTC') COMMENT 'evidence span, event time',
    to_time              DateTime64(3, 'UTC'),
    chosen               String               COMMENT 'creative with more clicks',
    chosen_impressions   Int64,
    chosen_clicks        Int64,
    chosen_mean          Float64              COMMENT 'posterior mean of its click-through rate',
    rejected             String,
    rejected_impressions Int64,
    rejected_clicks      Int64,
    rejected_mean        Float64,
    weight               Float64              COMMENT '2 P(chosen better) - 1, [0, 1]',
    left                 UInt8                COMMENT '1: the chosen one is shown on the left',
    split                LowCardinality(String),
    policy               LowCardinality(String)
)
ENGINE = {{engine "ReplacingMergeTree"}} ORDER BY (product, id);

{{distributed "pairs" "sipHash64(id)"}}
