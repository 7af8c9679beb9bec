-- Where is the treatment better, where worse? (Each interval holds for its category alone. Of a ramp, steps above 1,
-- or by product it says nothing: `GET /v1/experiments/{id}/categories` has those of the step that decides.)
-- param experiment: id of the experiment
SELECT category, variant, users, control_users, round(lift, 4) AS lift, round(lift_low, 4) AS lift_low, round(lift_high, 4) AS lift_high,
    p, unknown, steps, unit
FROM experiment_lift_by_category
WHERE experiment = {experiment:String}
ORDER BY p, category
