-- ctr_by_creative
-- Question: how does each creative do?
-- Columns:  product, category, creative, model_version; impressions, clicks (impressions with a click),
--           ctr (clicks per impression, 0 - 1), first_seen, last_seen (event time).
-- Example:  SELECT creative, ctr FROM ctr_by_creative WHERE product = 'mug-01' ORDER BY ctr DESC
-- Cost:     ctr_days; a product alone reads its range only.
CREATE OR REPLACE VIEW ctr_by_creative {{cluster}}AS
SELECT product, category, creative, model_version,
    sum(ctr_days.impressions) AS impressions, sum(ctr_days.clicks) AS clicks, clicks / impressions AS ctr,
    min(ctr_days.first_seen) AS first_seen, max(ctr_days.last_seen) AS last_seen
FROM ctr_days
GROUP BY product, category, creative, model_version
COMMENT 'Click-through rate of each creative';

-- ctr_by_product_day
-- Question: how does each product do from day to day?
-- Columns:  day (event time, UTC), product, category; impressions, clicks, ctr (0 - 1).
-- Example:  SELECT day, ctr FROM ctr_by_product_day WHERE product = 'mug-01' ORDER BY day
-- Cost:     ctr_days; a product alone reads its range only.
CREATE OR REPLACE VIEW ctr_by_product_day {{cluster}}AS
SELECT day, product, category,
    sum(ctr_days.impressions) AS impressions, sum(ctr_days.clicks) AS clicks, clicks / impressions AS ctr
FROM ctr_days
GROUP BY day, product, category
COMMENT 'Click-through rate of each product and day';

-- ctr_by_category
-- Question: which categories do well?
-- Columns:  category ("department/category"); products, creatives (shown), impressions, clicks, ctr (0 - 1).
-- Example:  SELECT * FROM ctr_by_category ORDER BY ctr DESC LIMIT 10
-- Cost:     ctr_days.
CREATE OR REPLACE VIEW ctr_by_category {{cluster}}AS
SELECT category, uniqExact(product) AS products, uniqExact(creative) AS creatives,
    sum(ctr_days.impressions) AS impressions, sum(ctr_days.clicks) AS clicks, clicks / impressions AS ctr
FROM ctr_days
GROUP BY category
COMMENT 'Click-through rate of each category';

-- pair_evidence
-- Question: what is known about each creative in each cell, for building preference pairs?
-- Columns:  product, category, creative, placement; impressions, clicks; from_time, to_time (evidence span, event time).
-- Example:  SELECT * FROM pair_evidence WHERE product = 'mug-01' AND placement = 'feed' ORDER BY clicks DESC
-- Cost:     ctr_days; a product alone reads its range only.
CREATE OR REPLACE VIEW pair_evidence {{cluster}}AS
SELECT product, category, creative, placement,
    sum(ctr_days.impressions) AS impressions, sum(ctr_days.clicks) AS clicks, min(first_seen) AS from_time, max(last_seen) AS to_time
FROM ctr_days
GROUP BY product, category, creative, placement
COMMENT 'Mature clicks and impressions of each creative per placement';

-- model_timeline
-- Question: which model version served when, and how did it do?
-- Columns:  hour (event time, UTC), model_version; impressions, clicks, ctr (0 - 1), share (of the hour's impressions, 0 - 1),
--           promoted (time of its last promotion or of the roll-back to it, by the control log; 1970 when there was none).
-- Example:  SELECT hour, model_version, share, ctr FROM model_timeline ORDER BY hour, model_version
-- Cost:     ctr_hours; the control log is small.
CREATE OR REPLACE VIEW model_timeline {{cluster}}AS
SELECT hour, model_version, impressions, clicks, clicks / impressions AS ctr,
    impressions / sum(impressions) OVER (PARTITION BY hour) AS share, promotion.promoted AS promoted
FROM
(
    SELECT hour, toString(ctr_hours.model_version) AS model_version,
        sum(ctr_hours.impressions) AS impressions, sum(ctr_hours.clicks) AS clicks
    FROM ctr_hours
    GROUP BY hour, model_version
) AS served
LEFT JOIN
(
    SELECT JSONExtractString(data, if(type = 'experiment.decided', 'champion', 'version')) AS model_version, max(time) AS promoted
    FROM control_log FINAL
    WHERE rejected = '' AND type IN ('model.promoted', 'model.rolled_back', 'experiment.decided') AND model_version != ''
    GROUP BY model_version
) AS promotion USING (model_version)
COMMENT 'Which model version served when, and its click-through rate';

-- click_delay
-- Question: how long after the impression do clicks come? (Is the join window long enough?)
-- Columns:  day (event time, UTC), category; clicks, p50_ms, p90_ms, p99_ms, max_ms (milliseconds), corrected (clicks that
--           came after the window had closed).
-- Example:  SELECT day, sum(corrected) / sum(clicks) FROM click_delay GROUP BY day
-- Cost:     one scan of the clicked rows of labels_mature.
CREATE OR REPLACE VIEW click_delay {{cluster}}AS
SELECT toDate(event_time) AS day, category, count() AS clicks,
    quantileExact(0.5)(click_delay_ms) AS p50_ms, quantileExact(0.9)(click_delay_ms) AS p90_ms,
    quantileExact(0.99)(click_delay_ms) AS p99_ms, max(click_delay_ms) AS max_ms, countIf(kind = 'corrected') AS corrected
FROM labels_mature
WHERE clicked = 1
GROUP BY day, category
COMMENT 'Delay of clicks';

-- creative_fatigue
-- Question: do creatives wear out?
-- Columns:  product, creative; age_days (whole days of event time since its first impression); impressions, clicks,
--           ctr (0 - 1); first_ctr (of its first three days, 0 - 1), change (ctr / first_ctr - 1, 0.1 = +10 %; NaN without
--           clicks in the first three days).
-- Note:     traffic between creatives is not randomised evenly, and users change with time: a fall is a reason for a
--           test, no proof.
-- Example:  SELECT age_days, sum(clicks) / sum(impressions) AS ctr FROM creative_fatigue GROUP BY age_days ORDER BY age_days
-- Cost:     ctr_days; a product alone reads its range only.
CREATE OR REPLACE VIEW creative_fatigue {{cluster}}AS
SELECT product, creative, toUInt32(day - first_day) AS age_days, impressions, clicks, clicks / impressions AS ctr,
    sumIf(clicks, age_days < 3) OVER life / sumIf(impressions, age_days < 3) OVER life AS first_ctr,
    if(first_ctr > 0, ctr / first_ctr - 1, nan) AS change
FROM
(
    SELECT product, creative, day, sum(ctr_days.impressions) AS impressions, sum(ctr_days.clicks) AS clicks,
        min(day) OVER (PARTITION BY product, creative) AS first_day
    FROM ctr_days
    GROUP BY product, creative, day
)
WINDOW life AS (PARTITION BY product, creative)
COMMENT 'Click-through rate of creatives by age';
