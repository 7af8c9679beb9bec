-- Which variants are better than their control, by how much, and is that certain? (Look as often as you like.)
SELECT experiment, variant, users, control_users, round(ctr, 5) AS ctr, round(control_ctr, 5) AS control_ctr,
    round(lift, 4) AS lift, round(lift_low, 4) AS lift_low, round(lift_high, 4) AS lift_high, p
FROM experiment_lift
ORDER BY experiment, variant
