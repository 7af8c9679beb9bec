-- ctr_by_creative
-- Question: how does each creative do?
-- Columns:  product, category, creative, model_version; impressions, clicks (impressions with a click),
--           ctr (clicks per impression, 0 - 1), first_seen, last_seen (event time).
-- Example:  SELECT creative, ctr FROM ctr_by_creative WHERE product = 'mug-01' ORDER BY ctr DESC
-- Cost:     one scan of labels_mature; a product alone reads its ranges only.
CREATE OR REPLACE VIEW ctr_by_creative {{cluster}}AS
SELECT product, category, creative, model_version,
    count() AS impressions, sum(clicked) AS clicks, clicks / impressions AS ctr,
    min(event_time) AS first_seen, max(event_time) AS last_seen
FROM labels_mature
GROUP BY product, category, creative, model_version
COMMENT 'Click-through rate of each creative';

-- ctr_by_product_day
-- Question: how does each product do from day to day?
-- Columns:  day (event time, UTC), product, category; impressions, clicks, ctr (0 - 1).
-- Example:  SELECT day, ctr FROM ctr_by_product_day WHERE product = 'mug-01' ORDER BY day
-- Cost:     one scan of labels_mature.
CREATE OR REPLACE VIEW ctr_by_product_day {{cluster}}AS
SELECT toDate(event_time) AS day, product, category,
    count() AS impressions, sum(clicked) AS clicks, clicks / impressions AS ctr
FROM labels_mature
GROUP BY day, product, category
COMMENT 'Click-through rate of each product and day';

-- ctr_by_category
-- Question: which categories do well?
-- Columns:  category ("department/category"); products, creatives (shown), impressions, clicks, ctr (0 - 1).
-- Example:  SELECT * FROM ctr_by_category ORDER BY ctr DESC LIMIT 10
-- Cost:     one scan of labels_mature.
CREATE OR REPLACE VIEW ctr_by_category {{cluster}}AS
SELECT category, uniqExact(product) AS products, uniqExact(creative) AS creatives,
    count() AS impressions, sum(clicked) AS clicks, clicks / impressions AS ctr
FROM labels_mature
GROUP BY category
COMMENT 'Click-through rate of each category';

-- pair_evidence
-- Question: what is known about each creative in each cell, for building preference pairs?
-- Columns:  product, category, creative, placement; impressions, clicks; from_time, to_time (evidence span, event time).
-- Example:  SELECT * FROM pair_evidence WHERE product = 'mug-01' AND placement = 'feed' ORDER BY clicks DESC
-- Cost:     one scan of labels_mature.
CREATE OR REPLACE VIEW pair_evidence {{cluster}}AS
SELECT product, category, creative, placement,
    count() AS impressions, sum(clicked) AS clicks, min(event_time) AS from_time, max(event_time) AS to_time
FROM labels_mature
GROUP BY product, category, creative, placement
COMMENT 'Mature clicks and impressions of each creative per placement';

-- model_timeline
-- Question: which model version served when, and how did it do?
-- Columns:  hour (event time, UTC), model_version; impressions, clicks, ctr (0 - 1), share (of the hour's impressions, 0 - 1),
--           promoted (time of its last promotion or of the roll-back to it, by the control log; 1970 when there was none).
-- Example:  SELECT hour, model_version, share, ctr FROM model_timeline ORDER BY hour, model_version
-- Cost:     one scan of labels_mature; the control log is small.
CREATE OR REPLACE VIEW model_timeline {{cluster}}AS
SELECT hour, model_version, impressions, clicks, clicks / impressions AS ctr,
    impressions / sum(impressions) OVER (PARTITION BY hour) AS share, promotion.promoted AS promoted
FROM
(
    SELECT toStartOfHour(event_time) AS hour, toString(model_version) AS model_version, count() AS impressions, sum(clicked) AS clicks
    FROM labels_mature
    GROUP BY hour, model_version
) AS served
LEFT JOIN
(
    SELECT JSONExtractString(data, 'version') AS model_version, max(time) AS promoted
    FROM control_log FINAL
    WHERE rejected = '' AND type IN ('model.promoted', 'model.rolled_back')
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
