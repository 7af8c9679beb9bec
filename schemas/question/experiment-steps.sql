-- How did each step of a ramp go? (The last one below share 1 decides. Each interval holds for its step alone.)
-- param experiment: id of the experiment
-- param settle = 60: seconds after a step's begin that do not count, as experiment.settle of the instance
SELECT step, share, visits, since, until, variant, users, control_users, round(ctr, 5) AS ctr, round(control_ctr, 5) AS control_ctr,
    round(lift, 4) AS lift, round(lift_low, 4) AS lift_low, round(lift_high, 4) AS lift_high, p, unknown
FROM experiment_steps(id = {experiment:String}, settle = {settle:UInt32})
ORDER BY step, variant
