-- Is traffic split as planned, and does each user see one variant?
SELECT experiment, variant, users, round(multiple, 5) AS multiple, anonymous, round(share, 4) AS share, round(planned, 4) AS planned,
    planned_by, not_planned, steps, looks, last_action, srm_p, srm_unknown
FROM experiment_health
ORDER BY experiment, variant
