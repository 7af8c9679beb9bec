-- Newest looks at an experiment, newest first. Arguments: its id, how many.
SELECT time, step, share, action, rule, lift, lift_low, lift_high, p, srm_p, impressions
FROM experiment_looks FINAL
WHERE experiment = ?
ORDER BY time DESC, step DESC
LIMIT ?
