-- What did the rollout controller see at each look, and what did it do?
-- param experiment: id of the experiment
SELECT time, l.step + 1 AS step, share, action, rule, round(lift, 4) AS lift, round(lift_low, 4) AS lift_low, round(lift_high, 4) AS lift_high, p, srm_p, impressions
FROM experiment_looks AS l FINAL
WHERE experiment = {experiment:String}
ORDER BY time
