-- A look at an experiment. Figures come as text, as "NaN" where they are not known.
INSERT INTO experiment_looks (experiment, time, step, share, action, rule, lift, lift_low, lift_high, p, srm_p, impressions)
SELECT ?, fromUnixTimestamp64Milli(toInt64(?), 'UTC'), ?, ?, ?, ?,
    toFloat64(?), toFloat64(?), toFloat64(?), toFloat64(?), toFloat64(?), ?
