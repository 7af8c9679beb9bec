-- What does the warehouse know of one impression?
-- param id: impression id
SELECT version, kind, clicked, click_delay_ms, event_time, product, creative, placement, experiment, variant, model_version, propensity, arm_share, bot, suspect, latest, counts
FROM trace_impression(id = {id:String})
