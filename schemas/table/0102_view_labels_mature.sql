-- labels_mature
-- Question: which impressions may a click-through rate, evidence or an experiment count?
-- Columns:  those of labels, arm_share included; one row per impression.
-- Rule:     latest version, event_time <= label_horizon, no bots, not made while the circuit breaker was open
--           unless a review has cleared them (label_reviews), not of a partition that has no watermark yet. All figures are
--           made from these rows; views over long spans count them through the rollups (rollup_cells), with the same result.
-- Example:  SELECT sum(clicked) / count() AS ctr FROM labels_mature
-- Cost:     labels_latest plus label_horizon.
CREATE OR REPLACE VIEW labels_mature {{cluster}}AS
SELECT *
FROM labels_latest
WHERE event_time <= (SELECT horizon FROM label_horizon) AND bot = 0 AND {{trusted}} AND {{has_time}}
COMMENT 'Impressions that figures may count: latest version, mature, no bots';
