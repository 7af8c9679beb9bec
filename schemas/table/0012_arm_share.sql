-- The share of the units of the experiment that the impression's arm had. It stands apart from propensity, which is the probability of
-- the creative over everything random. Unknown, as in rows of before this file, is NULL. Without a cluster both statements are of one table.
ALTER TABLE {{local "labels"}} {{cluster}}ADD COLUMN IF NOT EXISTS arm_share Nullable(Float64) COMMENT 'share of the arm in the experiment, (0, 1]; NULL: not known' CODEC(ZSTD(1));
ALTER TABLE labels {{cluster}}ADD COLUMN IF NOT EXISTS arm_share Nullable(Float64) COMMENT 'share of the arm in the experiment, (0, 1]; NULL: not known';
