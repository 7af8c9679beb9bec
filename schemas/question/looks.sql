-- What did the rollout controller see at each look, and what did it do?
-- param experiment: id of the experiment
SELECT time, step, share, action, rule, round(lift, 4) AS lift, round(lift_low, 4) AS lift_low, round(lift_high, 4) AS lift_high, p, srm_p, impressions
FROM experiment_looks FINAL
WHERE experiment = {experiment:String}
ORDER BY time
