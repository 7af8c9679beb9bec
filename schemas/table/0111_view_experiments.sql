{{define "moments"}}sum(m * m) AS sum_mm, sum(d * d) AS sum_dd, sum(m * d) AS sum_md{{end -}}
{{/* v of the ratio by the delta method; 0 where what is left of the squares is rounding, as in internal/stats */ -}}
{{define "variance"}}if(n < 2, nan,
        if(sum_mm - 2 * ctr * sum_md + ctr * ctr * sum_dd <= {{rounding}} * (sum_mm + 2 * ctr * sum_md + ctr * ctr * sum_dd), 0,
            n * (sum_mm - 2 * ctr * sum_md + ctr * ctr * sum_dd) / (n - 1) * n / sum_d / sum_d)) AS variance,
    sqrt(variance / n) AS se{{end -}}
-- experiment_results
-- Question: what did each variant of each experiment get?
-- Columns:  experiment, variant; impressions, clicks (impressions with a click), users, ctr (0 - 1);
--           the sums over users i with m clicks and d impressions: n, sum_m, sum_d, sum_mm, sum_dd, sum_md;
--           variance v = (s2_m - 2 R s_md + R^2 s2_d) / mean(d)^2 of the ratio R = ctr by the delta method, with sample
--           variances (n - 1), and se = sqrt(v / n). A test per impression would be wrong: impressions of
--           one user are not independent. variance and se are NaN below two users.
--           anonymous: impressions without a user, counted here and nowhere else: they are not one user, and not of one arm.
-- Note:     sum (m - R d) is 0, so v needs no means: n^2 (sum_mm - 2 R sum_md + R^2 sum_dd) / ((n - 1) sum_d^2).
--           All of the experiment, whatever its share was: do not compare the variants of a ramp by it, where the
--           treatment lived mostly late and the control mostly early (Simpson's paradox). Ask experiment_steps there.
-- Example:  SELECT variant, users, ctr, se FROM experiment_results WHERE experiment = 'x-1'
-- Cost:     user_totals, grouped by user; of other experiments than the one asked for, a few ns a row.
CREATE OR REPLACE VIEW experiment_results {{cluster}}AS
SELECT names.experiment AS experiment, names.variant AS variant, impressions, clicks, users, clicks / impressions AS ctr,
    users AS n, clicks AS sum_m, impressions AS sum_d, sum_mm, sum_dd, sum_md,
    {{template "variance"}}, anonymous
FROM
(
    SELECT arm, sum(d) AS impressions, sum(m) AS clicks, countIf(user != 0) AS users, {{template "moments"}}, sum(nobody) AS anonymous
    FROM
    (
        SELECT arm, user, if(user = 0, 0, toUInt64(sum(clicks))) AS m, toUInt64(sum(impressions)) AS every,
            if(user = 0, 0, every) AS d, toUInt64(every - d) AS nobody
        FROM user_totals
        GROUP BY arm, user
    )
    GROUP BY arm
) AS sums
INNER JOIN experiment_arms AS names USING (arm)
COMMENT 'Clicks, users and sums of each variant of each experiment';

-- experiment_results_by_category
-- Question: the same, within each category?
-- Columns:  experiment, category, variant, then as experiment_results. A user counts in each category that they saw;
--           impressions without a user count nowhere.
-- Example:  SELECT category, variant, ctr FROM experiment_results_by_category WHERE experiment = 'x-1'
-- Cost:     one scan of labels_mature, grouped by user and category: the rollups know users, but not by category (they
--           would be as large as labels). An experiment alone reads its range only.
CREATE OR REPLACE VIEW experiment_results_by_category {{cluster}}AS
SELECT experiment, category, variant,
    sum(d) AS impressions, sum(m) AS clicks, count() AS users, clicks / impressions AS ctr,
    users AS n, clicks AS sum_m, impressions AS sum_d, {{template "moments"}},
    {{template "variance"}}
FROM
(
    SELECT experiment, category, variant, user, toUInt64(sum(clicked)) AS m, toUInt64(count()) AS d
    FROM labels_mature
    WHERE experiment != '' AND user != 0
    GROUP BY experiment, category, variant, user
)
GROUP BY experiment, category, variant
COMMENT 'Clicks, users and sums of each variant of each experiment and category';

{{define "steps"}}
    SELECT toLowCardinality(substring(entity, 12)) AS experiment, count() AS steps,
        anyIf(JSONExtractString(data, 'unit'), type = 'experiment.created') AS unit
    FROM control_log FINAL
    WHERE rejected = '' AND startsWith(entity, 'experiment/') AND type IN ('experiment.created', 'experiment.step')
    GROUP BY experiment
{{end -}}
{{define "step_results"}}(
            WITH
            (
                -- (from, to, step, share) of each visit, times in milliseconds. A draft's first step begins with its start.
                SELECT arrayMap((v, i) -> (v.3 + if(v.3 > 0, 1000 * toInt64({settle:UInt32}), 0),
                    if(i < length(log), log[i + 1].3, 4102444800000), v.4, v.5), log, arrayEnumerate(log))
                FROM
                (
                    SELECT maxIf(at, kind = 'experiment.started') AS started,
                        arrayMap(v -> (v.1, v.2, if(v.3 < 0, started, v.3), v.4, v.5),
                            arraySort(groupArrayIf((time, offset, at, step, share), kind != 'experiment.started'))) AS log
                    FROM
                    (
                        SELECT c.time AS time, c.offset AS offset, toString(c.type) AS kind,
                            if(kind = 'experiment.created', -1, JSONExtractInt(data, 'at_ms')) AS at,
                            JSONExtractUInt(data, 'index') + 1 AS step,
                            if(kind = 'experiment.created', JSONExtract(data, 'steps', 'Array(Float64)')[1],
                                JSONExtractFloat(data, 'share')) AS share
                        FROM control_log AS c FINAL
                        WHERE rejected = '' AND entity = 'experiment/' || {id:String}
                            AND type IN ('experiment.created', 'experiment.started', 'experiment.step')
                    )
                )
            ) AS spans,
            (
                SELECT max(JSONExtractString(data, 'unit') = 'product')
                FROM control_log FINAL
                WHERE rejected = '' AND entity = 'experiment/' || {id:String} AND type = 'experiment.created'
            ) AS by_product
            SELECT {id:String} AS experiment, step, share,
                arrayFilter(s -> s.3 = step, spans) AS mine, length(mine) AS visits,
                fromUnixTimestamp64Milli(mine[1].1, 'UTC') AS since, fromUnixTimestamp64Milli(mine[-1].2, 'UTC') AS until,
                variant, count() AS users, users AS n, sum(m) AS sum_m, sum(d) AS sum_d, sum_m / sum_d AS ctr, {{template "moments"}},
                {{template "variance"}}
            FROM
            (
                SELECT variant, unit, span.3 AS step, span.4 AS share, toUInt64(sum(clicked)) AS m, toUInt64(count()) AS d
                FROM
                (
                    SELECT variant, if(by_product, cityHash64(product), user) AS unit, clicked,
                        toUnixTimestamp64Milli(event_time) AS at, arrayFirst(s -> at >= s.1 AND at < s.2, spans) AS span
                    FROM labels_mature
                    WHERE experiment = {id:String}
                )
                WHERE span.2 > 0 AND (by_product OR unit != 0)
                GROUP BY variant, unit, step, share
            )
            GROUP BY variant, step, share
        ){{end -}}
{{define "lift"}}WITH
    0.05 AS alpha,
    5000 AS n_star,
    x * (-2 * log(alpha) + log(1 - 2 * log(alpha))) / n_star AS y,
    sqrt(2 * (y + 1) / y * (0.5 * log1p(y) - log(alpha))) AS z,
{{if .whole}}    steps < 2 AND unit != 'product' AS may_pool,
{{end}}    -- The smaller arm's variance is at least what it would be with the spread of the larger arm's users.
    ad / add * ad AS ea,
    bd / bdd * bd AS eb,
    if(ea >= eb, oa, greatest(oa, eb / ea * ob)) AS va,
    if(ea >= eb, greatest(ob, ea / eb * oa), ob) AS vb,
    -- Too little data for an asymptotic interval: as TooFew of internal/stats.
    (am + bm) / (ad + bd) AS pooled,
    least(ad, bd) * pooled * (am + bm) / (amm + bmm) AS expected_clicks,
    least(ad, bd) * (1 - pooled) AS expected_without,
    multiIf(
{{if .whole}}        steps > 1, 'the shares changed: ask experiment_steps',
        unit = 'product', 'randomised by product: ask experiment_steps',
{{end}}        am + bm = 0, 'no clicks',
        NOT (least(ea, eb) >= {{least_units}} AND least(expected_clicks, expected_without) >= {{least_clicks}}), 'too little data',
        NOT (vb + va > 0), 'no variation', '') AS unknown,
    unknown = '' AS informative,
    ra * ra - z * z * va AS qa,
    ra * rb AS qb,
    rb * rb - z * z * vb AS qc,
    sqrt(greatest(0, qb * qb - qa * qc)) AS root
SELECT
    {{.keys}}, variant, users, control_users, rb AS ctr, ra AS control_ctr,
    {{if .whole}}if(may_pool, rb - ra, nan){{else}}rb - ra{{end}} AS diff,
    if(informative, diff - z * sqrt(va + vb), -1) AS diff_low,
    if(informative, diff + z * sqrt(va + vb), 1) AS diff_high,
    if(ra > 0{{if .whole}} AND may_pool{{end}}, rb / ra - 1, nan) AS lift,
    if(informative AND qa > 0, greatest((qb - root) / qa, 0) - 1, -1) AS lift_low,
    if(informative AND qa > 0, (qb + root) / qa - 1, inf) AS lift_high,
    if(informative, least(1, exp(0.5 * log1p(y) - y * diff * diff / (va + vb) / (2 * (y + 1)))), 1) AS p,
    unknown{{if .whole}}, plan.steps AS steps, plan.unit AS unit{{end}}
FROM
(
    -- One pass over the results: a join of them with themselves would count the users twice.
    SELECT {{.keys}}, arm.1 AS variant, arm.2 AS users, control.2 AS control_users,
        arm.3 AS rb, control.3 AS ra, pow(arm.4, 2) AS ob, pow(control.4, 2) AS oa, toFloat64(arm.2 + control.2) AS x,
        arm.5 AS bm, arm.6 AS bd, arm.7 AS bmm, arm.8 AS bdd, control.5 AS am, control.6 AS ad, control.7 AS amm, control.8 AS add
    FROM
    (
        SELECT {{.keys}}, groupArray((toString(variant), users, ctr, se,
            toFloat64(sum_m), toFloat64(sum_d), toFloat64(sum_mm), toFloat64(sum_dd))) AS arms,
            arrayFirst(a -> a.1 = 'control', arms) AS control
        FROM {{if .whole}}{{.results}}{{else}}{{template "step_results"}}{{end}}
        GROUP BY {{.keys}}
    )
    ARRAY JOIN arms AS arm
    WHERE arm.1 != 'control' AND control.1 = 'control'
) AS arms{{if .whole}}
LEFT JOIN ({{template "steps"}}) AS plan USING (experiment){{end}}{{end -}}
-- experiment_lift
-- Question: is the treatment better than the control, by how much, and may we look now?
-- Columns:  experiment, variant (each one but "control"); users, control_users, ctr, control_ctr (0 - 1);
--           diff, diff_low, diff_high (difference of the rates); lift, lift_low, lift_high (relative, 0.05 = +5 %);
--           p (always valid: look as often as you like). lift is NaN without control clicks; unknown, why the data bound
--           nothing, empty where they do: no clicks, too little data (an asymptotic interval wants 20 effective
--           users (sum d)^2 / sum d^2, 10 expected clicks and as many impressions without one, in each arm), no
--           variation. The intervals hold everything then and p is 1; steps, the shares that the experiment has had so far by the
--           control log, returns to one counted anew (0: not on the log); unit that it randomises by (user or product;
--           empty: not on the log). With two steps or more, or by product, diff and lift are NaN, the intervals hold
--           everything and p is 1: see the note.
-- Formulas: asymptotic confidence sequence (Waudby-Smith et al., arXiv 2103.06476), alpha = 0.05, tightest at n* = 5000 users:
--           half = sigma sqrt(2 (n rho^2 + 1) / (n^2 rho^2) ln(sqrt(n rho^2 + 1) / alpha)), sigma^2 = n SE^2, n = users of both
--           arms, rho^2 = (-2 ln alpha + ln(-2 ln alpha + 1)) / n*; with x = n rho^2 that is z SE;
--           p = min(1, sqrt(x + 1) exp(-x diff^2 / (2 (x + 1) SE^2))). SE^2 is the sum of both arms' se^2, where the arm with
--           fewer effective users has at least the larger one's, times how many times fewer (ADR 36).
--           Relative: Fieller's interval with the same z. Equal to internal/stats to 1e-9 (tested).
-- Note:     of an experiment whose share changed it says nothing (and ctr and control_ctr must not be compared): over a ramp a
--           rate that drifts makes a lift where there is none, with an interval that is sure of it (Simpson's
--           paradox). Nor of one by product, whose impressions of a product are not independent. Ask experiment_steps there.
-- Example:  SELECT lift, lift_low, lift_high, p FROM experiment_lift WHERE experiment = 'x-1'
-- Cost:     experiment_results.
CREATE OR REPLACE VIEW experiment_lift {{cluster}}AS
{{template "lift" dict "results" "experiment_results" "keys" "experiment" "whole" "yes"}}
COMMENT 'Lift of each variant over control with always-valid intervals';

-- experiment_steps
-- Question: how did each step of a ramp go? Its span, and the lift within it, which a changing share does not bias.
-- Columns:  experiment, step (number, from 1), share (of the treatment), visits (to the step), since, until (event time:
--           begin of the first visit, end of the last; 1970-01-01: with the experiment, 2100-01-01: still open), then as
--           experiment_lift, over the impressions of all visits together. A step without both variants has no row.
-- Parameters: id of the experiment; settle, the seconds after a step's begin that do not count, as the instance's setting
--           experiment.settle: some still assign by the old share then.
-- Note:     with alpha = 0.05 and n* = 5000; users are products where the experiment randomises by product, and else
--           impressions without a user count nowhere. The steps come from the mirrored control log. The last one below
--           share 1 decides a rollout; do not add steps up.
-- Example:  SELECT step, share, lift, lift_low, lift_high, p FROM experiment_steps(id = 'x-1', settle = 60) ORDER BY step
-- Cost:     one scan of the experiment's labels: rollups are by day, steps are not.
CREATE OR REPLACE VIEW experiment_steps {{cluster}}AS
{{template "lift" dict "keys" "experiment, step, share, visits, since, until"}}
COMMENT 'Lift of each step of a ramp with always-valid intervals';

-- experiment_lift_by_category
-- Question: where is the treatment better, where worse?
-- Columns:  experiment, category, then as experiment_lift. Each interval and p holds for its category alone: of 44
--           categories without a difference about two are below 0.05. Compare p with 0.05 / categories, or use the
--           experiment's categories over HTTP, which correct for it. Of a ramp, or by product, it says
--           nothing, as experiment_lift.
-- Example:  SELECT category, lift, lift_low, lift_high FROM experiment_lift_by_category WHERE experiment = 'x-1' ORDER BY p
-- Cost:     experiment_results_by_category.
CREATE OR REPLACE VIEW experiment_lift_by_category {{cluster}}AS
{{template "lift" dict "results" "experiment_results_by_category" "keys" "experiment, category" "whole" "yes"}}
COMMENT 'Lift of each variant over control within each category';

-- experiment_cuped
-- Question: the sums of each variant together with what its users did before the experiment (for CUPED)?
-- Columns:  experiment, variant; n users; with m clicks and d impressions in the experiment, x clicks and y impressions in the
--           days before the experiment's first (all traffic of the user, 0 without any): sum_m, sum_d, sum_x, sum_y and
--           the sums of products sum_mm, sum_dd, sum_md, sum_xx, sum_yy, sum_xy, sum_mx, sum_my, sum_dx, sum_dy.
-- Parameters: id of the experiment; days before it that count.
-- Example:  SELECT * FROM experiment_cuped(id = 'x-1', days = 14)
-- Cost:     user_totals of the experiment's variants, and user_days of the days before.
CREATE OR REPLACE VIEW experiment_cuped {{cluster}}AS
WITH (SELECT min(day) FROM ctr_days WHERE experiment = {id:String}) AS start
SELECT {id:String} AS experiment, names.variant AS variant, n, sum_m, sum_d, sum_x, sum_y,
    sum_mm, sum_dd, sum_md, sum_xx, sum_yy, sum_xy, sum_mx, sum_my, sum_dx, sum_dy
FROM
(
    SELECT arm, count() AS n, sum(m) AS sum_m, sum(d) AS sum_d, sum(x) AS sum_x, sum(y) AS sum_y,
        {{template "moments"}}, sum(x * x) AS sum_xx, sum(y * y) AS sum_yy, sum(x * y) AS sum_xy,
        sum(m * x) AS sum_mx, sum(m * y) AS sum_my, sum(d * x) AS sum_dx, sum(d * y) AS sum_dy
    FROM
    (
        SELECT arm, user, toUInt64(sum(clicks)) AS m, toUInt64(sum(impressions)) AS d
        FROM user_totals
        WHERE user != 0 AND arm GLOBAL IN (SELECT arm FROM experiment_arms WHERE experiment = {id:String})
        GROUP BY arm, user
    ) AS during
    LEFT JOIN
    (
        SELECT user, toUInt64(sum(clicks)) AS x, toUInt64(sum(impressions)) AS y
        FROM user_days
        WHERE day < start AND day >= start - {days:UInt16}
        GROUP BY user
    ) AS earlier USING (user)
    GROUP BY arm
) AS sums
INNER JOIN experiment_arms AS names USING (arm)
COMMENT 'Sums of an experiment with those of the days before it';

{{define "numbered_arms"}}(
        SELECT groupArray((experiment, variant, arm, trial, nth))
        FROM
        (
            SELECT toString(experiment) AS experiment, toString(variant) AS variant, arm, toUInt64(sipHash64(experiment)) AS trial,
                toUInt64(row_number() OVER (PARTITION BY experiment ORDER BY variant) - 1) AS nth
            FROM experiment_arms QUALIFY nth < 64
        )
    ){{end -}}
-- experiment_plans
-- Question: by which shares were the users of an experiment drawn that is not on the control log, and into which variants did they fall?
-- Columns:  experiment, plan (number, from 1, in the order in which they began), since (event time of its first user), variant,
--           share (planned for the variant, 0 - 1), users (first seen in the variant, by this plan); unknown (why the plan is not known;
--           else empty).
--           An experiment whose plan is not known has one row, with plan 0 and the users of all its variants.
-- Rule:     each user counts once, where first seen, by the arm_share of that impression: one who moves when the shares change was drawn by
--           the earlier ones. Of two variants one share gives the other, so that every user says by which plan it was drawn, in a ramp too.
--           Of three and more a share alone does not tell which others it went with: they are known while they stand still, and
--           add up to 1. Of two, users of both must have seen one of the plans, or another variant may be missing.
-- Note:     labels that lack arm_share make a plan unknown, which is not the same as kept to. What the control log has is not here.
-- Example:  SELECT plan, variant, share, users FROM experiment_plans WHERE experiment = 'x-1' ORDER BY plan, variant
-- Cost:     arm_share of the labels of experiments that are not on the control log; where it is said, one scan of these, grouped by user.
CREATE OR REPLACE VIEW experiment_plans {{cluster}}AS
WITH
    arrayJoin(if(unknown != '', [(toUInt32(0), fromUnixTimestamp64Milli(toInt64(0), 'UTC'), '', nan, users_seen)], drawn)) AS drawn_row
SELECT experiment, drawn_row.1 AS plan, drawn_row.2 AS since, drawn_row.3 AS variant, drawn_row.4 AS share, drawn_row.5 AS users, unknown
FROM
(
    SELECT experiment, groupArray((variant, share, n, first, none)) AS cells, sum(n) AS users_seen, sum(none) AS shareless,
        arraySort(groupUniqArray(variant)) AS names, length(names) AS arms,
        -- The share of the first variant by name stands for the plan of two; three and more have one plan.
        arrayMap(c -> if(arms = 2, round(if(c.1 = names[1], c.2, 1 - c.2), 9), 0), cells) AS plan_of,
        arraySort(k -> arrayMin(arrayMap((c, o) -> if(o = k, c.4, toDateTime64('2299-01-01', 3, 'UTC')), cells, plan_of)),
            arrayDistinct(plan_of)) AS plans,
        arraySum(c -> c.2, cells) AS total,
        multiIf(
            arms < 2, 'users were seen in one variant only',
            arms > 64, 'it has more than 64 variants',
            shareless > 0, toString(shareless) || ' of ' || toString(users_seen) || ' users were first seen without arm_share',
            arrayExists(c -> NOT (c.2 > 0), cells), 'arm_share is smaller than 0.000000001',
            arms = 2 AND NOT arrayExists(k -> length(arrayDistinct(arrayFilter((v, o) -> o = k, cells.1, plan_of))) = 2, plans),
                'the shares of its two variants never add up to 1',
            arms > 2 AND length(cells) > arms,
                'the shares of its ' || toString(arms) || ' variants changed, and labels do not say which went together',
            arms > 2 AND abs(total - 1) > 1e-6, 'the shares of its variants add up to ' || toString(round(total, 6)),
            '') AS unknown,
        arrayFlatten(arrayMap((k, i) -> arrayMap(v -> (toUInt32(i),
                arrayMin(arrayMap((c, o) -> if(o = k, c.4, toDateTime64('2299-01-01', 3, 'UTC')), cells, plan_of)), v,
                if(arms = 2, if(v = names[1], k, round(1 - k, 9)), arrayFirst(c -> c.1 = v, cells).2),
                arraySum((c, o) -> if(o = k AND c.1 = v, c.3, 0), cells, plan_of)), names),
            plans, arrayEnumerate(plans))) AS drawn
    FROM
    (
        SELECT experiment, seen.1 AS variant, round(ifNull(seen.2, 0), 9) AS share, count() AS n, min(seen.3) AS first,
            countIf(seen.2 IS NULL) AS none
        FROM
        (
            SELECT toString(experiment) AS experiment,
                argMin((toString(variant), arm_share, event_time), (event_time, impression_id)) AS seen
            FROM labels_mature
            WHERE user != 0 AND experiment GLOBAL IN
            (
                SELECT DISTINCT experiment
                FROM labels
                WHERE arm_share IS NOT NULL AND experiment GLOBAL IN
                (
                    SELECT experiment FROM experiment_arms WHERE experiment GLOBAL NOT IN
                    (
                        SELECT substring(entity, 12) FROM control_log FINAL WHERE rejected = '' AND type = 'experiment.created'
                    )
                )
            )
            GROUP BY experiment, user
        )
        GROUP BY experiment, variant, share
    )
    GROUP BY experiment
)
COMMENT 'Shares by which users of experiments were drawn that are not on the control log, by their labels';

-- experiment_health
-- Question: is the experiment's traffic split as planned, and does each user see one variant?
-- Columns:  experiment, variant; users, users_elsewhere (of them, seen in another variant of the experiment too), multiple
--           (their share, 0 - 1); anonymous (impressions without a user, which count nowhere else); share (of the
--           experiment's users over all variants, 0 - 1); planned (share of the variant by the latest step or plan, 0 - 1; NaN: not known),
--           planned_by (who says so: control log, labels; empty: nobody) and not_planned (why planned is NaN; else empty); steps (of the
--           ramp on the control log so far, or plans that labels tell of), looks and last_action (of the rollout controller), srm_p (of the
--           sample-ratio test, valid at every look: of the controller's last look, or where the experiment is not on the control log of
--           the plans in experiment_plans, with prior 1; NaN: not known) and srm_unknown (why srm_p is NaN; else empty).
-- Note:     NaN is not "as planned": nothing was held against a plan. share covers the whole experiment, planned its last step: compare
--           them while steps is 1. srm_p is made step by step and is the one to act on: below 0.01 the assignment or the logging is
--           broken. Where neither the control log nor arm_share of the labels says the shares,
--           `ctrloop stats srm --experiment ID --shares 0.5,0.5` takes them. Of an experiment with more than 64 variants the
--           first 64 by name are counted.
-- Example:  SELECT experiment, variant, multiple, srm_p, srm_unknown FROM experiment_health WHERE multiple > 0.01 OR NOT (srm_p >= 0.01)
-- Cost:     user_totals, grouped by experiment and user, and experiment_plans; one experiment costs as much as all.
CREATE OR REPLACE VIEW experiment_health {{cluster}}AS
WITH indexOf(told.names, variant) AS at
SELECT experiment, variant, users, users_elsewhere, users_elsewhere / users AS multiple, anonymous,
    users / sum(users) OVER (PARTITION BY experiment) AS share,
    multiIf(not_planned != '', nan, plan.steps = 0, told.planned[at], variant = 'treatment', plan.planned, 1 - plan.planned) AS planned,
    multiIf(not_planned != '', '', plan.steps = 0, 'labels', 'control log') AS planned_by,
    multiIf(
        plan.steps = 0 AND told.known = 0, 'the experiment is not on the control log, and its labels carry no arm_share',
        plan.steps = 0 AND told.unknown != '', told.unknown,
        plan.steps = 0 AND at = 0, 'no user was first seen in this variant',
        plan.steps = 0, '',
        plan.unit = 'product', 'the shares are of products, and these are users',
        variant NOT IN ('control', 'treatment'), 'the plan of the experiment has no such variant', '') AS not_planned,
    if(plan.steps = 0, told.plans, plan.steps) AS steps, looked.looks AS looks, looked.last_action AS last_action,
    multiIf(srm_unknown != '', nan, plan.steps = 0, told.p, looked.srm_p) AS srm_p,
    multiIf(
        plan.steps = 0 AND told.known = 0, 'the experiment is not on the control log, and its labels carry no arm_share',
        plan.steps = 0, told.unknown,
        looked.looks = 0, 'nobody has looked at the experiment yet',
        isNaN(looked.srm_p), 'the last look had nothing to test: no units, or no share for the control', '') AS srm_unknown
FROM
(
    -- Of each user of an experiment the variants seen, as bits: a set of numbers costs three times as much, names ten times.
    -- The list of variants is a scalar, so that both readers see the same one.
    WITH {{template "numbered_arms"}} AS numbered
    SELECT names.row.1 AS experiment, names.row.2 AS variant, any(names.row.3) AS arm,
        sumIf(n, known) AS users, sumIf(n, known AND bitCount(seen) > 1) AS users_elsewhere
    FROM
    (
        SELECT trial, seen, user != 0 AS known, count() AS n
        FROM
        (
            SELECT transform(arm, numbered.3, numbered.4, toUInt64(0)) AS trial, user,
                groupBitOr(bitShiftLeft(toUInt64(1), transform(arm, numbered.3, numbered.5, toUInt64(0)))) AS seen
            FROM user_totals
            GROUP BY trial, user
        )
        GROUP BY trial, seen, known
    ) AS sets
    INNER JOIN (SELECT arrayJoin({{template "numbered_arms"}}) AS row, row.4 AS trial) AS names USING (trial)
    WHERE bitTest(seen, names.row.5)
    GROUP BY experiment, variant
) AS arms
LEFT JOIN (SELECT arm, sum(impressions) AS anonymous FROM user_totals WHERE user = 0 GROUP BY arm) AS nobody USING (arm)
LEFT JOIN
(
    SELECT substring(entity, 12) AS experiment, count() AS steps,
        anyIf(JSONExtractString(data, 'unit'), type = 'experiment.created') AS unit,
        argMax(if(type = 'experiment.step', JSONExtractFloat(data, 'share'), JSONExtractArrayRaw(data, 'steps')[1]::Float64),
            (time, offset)) AS planned
    FROM control_log FINAL
    WHERE rejected = '' AND type IN ('experiment.created', 'experiment.step')
    GROUP BY experiment
) AS plan USING (experiment)
LEFT JOIN
(
    SELECT toString(l.experiment) AS experiment, count() AS looks, toString(argMax(l.action, l.time)) AS last_action,
        argMax(l.srm_p, l.time) AS srm_p
    FROM experiment_looks AS l FINAL
    GROUP BY experiment
) AS looked USING (experiment)
LEFT JOIN
(
    -- The logarithm of the Bayes factor as SampleRatio of internal/stats has it, over all plans: users count once, so factors multiply.
    SELECT experiment, 1 AS known, any(plan_unknown) AS unknown, max(plan) AS plans,
        arrayFlatten(groupArrayIf(variants, plan = plans_of)) AS names, arrayFlatten(groupArrayIf(shares, plan = plans_of)) AS planned,
        least(1, exp(-sum(factor))) AS p
    FROM
    (
        SELECT experiment, plan, any(unknown) AS plan_unknown, max(plan) OVER (PARTITION BY experiment) AS plans_of,
            groupArray(variant) AS variants, groupArray(share) AS shares,
            if(plan = 0, 0, sum(lgamma(share + users) - lgamma(share) - users * log(share))
                + lgamma(sum(share)) - lgamma(sum(share) + sum(users))) AS factor
        FROM experiment_plans
        WHERE share > 0 OR plan = 0
        GROUP BY experiment, plan
    )
    GROUP BY experiment
) AS told USING (experiment)
COMMENT 'Split and exposures of each experiment';
