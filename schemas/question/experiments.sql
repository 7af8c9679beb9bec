-- Which variants are better than their control, by how much, and is that certain? (Look as often as you like. Of a
-- ramp, or by product: what the rollout controller saw at its last look.)
SELECT experiment, l.variant AS variant, l.users AS users, l.control_users AS control_users,
    round(if((l.steps > 1 OR l.unit = 'product') AS looked, nan, l.ctr), 5) AS ctr,
    round(if(looked, nan, l.control_ctr), 5) AS control_ctr,
    if(looked, '', l.unknown) AS unknown,
    round((multiIf(NOT looked, (l.lift, l.lift_low, l.lift_high, l.p), look.looks > 0, look.figures,
        (nan, nan, nan, nan)) AS f).1, 4) AS lift,
    round(f.2, 4) AS lift_low, round(f.3, 4) AS lift_high, f.4 AS p,
    multiIf(NOT looked, 'all of it', look.looks = 0, 'not looked at yet: ask experiment-steps',
        concat('step ', toString(look.last_step + 1), ' at ', formatDateTime(look.at, '%F %T'))) AS of
FROM experiment_lift AS l
LEFT JOIN
(
    SELECT experiment, count() AS looks, max(time) AS at, argMax(step, (time, step)) AS last_step,
        argMax((lift, lift_low, lift_high, p), (time, step)) AS figures
    FROM experiment_looks FINAL
    GROUP BY experiment
) AS look USING (experiment)
ORDER BY experiment, variant
