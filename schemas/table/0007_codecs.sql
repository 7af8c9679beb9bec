-- Codecs of labels, measured with `ctrloop bench query` (docs/warehouse.md has the table). Parts that are there change as
-- they are merged. Inside of a product few creatives, versions and propensities alternate: ZSTD finds that, LZ4 (the
-- default) does not. Without a cluster "labels" is the table itself.
ALTER TABLE {{local "labels"}} {{cluster}}
    MODIFY COLUMN product CODEC(ZSTD(1)),
    MODIFY COLUMN creative CODEC(ZSTD(1)),
    MODIFY COLUMN placement CODEC(ZSTD(1)),
    MODIFY COLUMN campaign CODEC(ZSTD(1)),
    MODIFY COLUMN category CODEC(ZSTD(1)),
    MODIFY COLUMN experiment CODEC(ZSTD(1)),
    MODIFY COLUMN variant CODEC(ZSTD(1)),
    MODIFY COLUMN model_version CODEC(ZSTD(1)),
    MODIFY COLUMN policy CODEC(ZSTD(1)),
    MODIFY COLUMN propensity CODEC(ZSTD(1));
