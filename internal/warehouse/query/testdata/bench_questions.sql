-- experiment_lift, all experiments
SELECT * FROM experiment_lift SETTINGS log_comment = 'bench', max_execution_time = 0;
-- experiment_lift, the largest
SELECT * FROM experiment_lift WHERE experiment = 'x-1' SETTINGS log_comment = 'bench', max_execution_time = 0;
-- experiment_lift, a later one
SELECT * FROM experiment_lift WHERE experiment = 'x-4' SETTINGS log_comment = 'bench', max_execution_time = 0;
-- raw scan of the largest experiment
SELECT arm, count(), sum(m), sum(d), sum(m * m), sum(d * d), sum(m * d)
FROM
(
    SELECT cityHash64(variant) AS arm, user, toUInt64(sum(clicked)) AS m, toUInt64(count()) AS d
    FROM labels_mature
    WHERE experiment = 'x-1'
    GROUP BY arm, user
)
GROUP BY arm SETTINGS log_comment = 'bench', max_execution_time = 0;
-- experiment_lift_by_category
SELECT * FROM experiment_lift_by_category WHERE experiment = 'x-1' SETTINGS log_comment = 'bench', max_execution_time = 0;
-- experiment_results
SELECT * FROM experiment_results SETTINGS log_comment = 'bench', max_execution_time = 0;
-- experiment_health
SELECT * FROM experiment_health SETTINGS log_comment = 'bench', max_execution_time = 0;
-- experiment_cuped
SELECT * FROM experiment_cuped(id = 'x-4', days = 14) SETTINGS log_comment = 'bench', max_execution_time = 0;
-- ctr_by_creative
SELECT sum(cityHash64(*)) FROM (SELECT * FROM ctr_by_creative) SETTINGS log_comment = 'bench', max_execution_time = 0;
-- ctr_by_creative, one product
SELECT * FROM ctr_by_creative WHERE product = 'product-7' SETTINGS log_comment = 'bench', max_execution_time = 0;
-- ctr_by_product_day
SELECT sum(cityHash64(*)) FROM (SELECT * FROM ctr_by_product_day) SETTINGS log_comment = 'bench', max_execution_time = 0;
-- ctr_by_category
SELECT * FROM ctr_by_category SETTINGS log_comment = 'bench', max_execution_time = 0;
-- pair_evidence
SELECT sum(cityHash64(*)) FROM (SELECT * FROM pair_evidence) SETTINGS log_comment = 'bench', max_execution_time = 0;
-- model_timeline
SELECT sum(cityHash64(*)) FROM (SELECT * FROM model_timeline) SETTINGS log_comment = 'bench', max_execution_time = 0;
-- creative_fatigue
SELECT sum(cityHash64(*)) FROM (SELECT * FROM creative_fatigue) SETTINGS log_comment = 'bench', max_execution_time = 0;
-- click_delay
SELECT sum(cityHash64(*)) FROM (SELECT * FROM click_delay) SETTINGS log_comment = 'bench', max_execution_time = 0;
-- freshness
SELECT * FROM freshness SETTINGS log_comment = 'bench', max_execution_time = 0;
-- label_horizon
SELECT * FROM label_horizon SETTINGS log_comment = 'bench', max_execution_time = 0;
-- trace_impression
SELECT * FROM trace_impression(id = '019ca8a5-0000-7000-8000-000000000000') SETTINGS log_comment = 'bench', max_execution_time = 0;
-- labels_mature, count
SELECT count(), sum(clicked) FROM labels_mature SETTINGS log_comment = 'bench', max_execution_time = 0;
-- audit_mismatch
SELECT sum(cityHash64(*)) FROM (SELECT * FROM audit_mismatch) SETTINGS log_comment = 'bench', max_execution_time = 0;
