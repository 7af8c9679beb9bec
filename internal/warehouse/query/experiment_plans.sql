-- Shares by which users of an experiment were drawn that is not on the control log. Argument: the experiment.
SELECT toUInt32(plan) AS plan, variant, share, toInt64(users) AS users, unknown
FROM experiment_plans
WHERE experiment = ?
ORDER BY plan, variant
