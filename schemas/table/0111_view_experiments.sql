-- experiment_results
-- Question: what did each variant of each experiment get?
-- Columns:  experiment, variant; impressions, clicks (impressions with a click), users, ctr (0 - 1);
--           the sums over users i with m clicks and d impressions: n, sum_m, sum_d, sum_mm, sum_dd, sum_md;
--           variance v = (s2_m - 2 R s_md + R^2 s2_d) / mean(d)^2 of the ratio R = ctr by the delta method, with sample
--           variances (n - 1), and se = sqrt(v / n). A test per impression would be wrong: impressions of
--           one user are not independent. variance and se are NaN below two users.
-- Note:     sum (m - R d) is 0, so v needs no means: n^2 (sum_mm - 2 R sum_md + R^2 sum_dd) / ((n - 1) sum_d^2).
-- Example:  SELECT variant, users, ctr, se FROM experiment_results WHERE experiment = 'x-1'
-- Cost:     one scan of labels_mature, grouped by user; an experiment alone reads its range only.
CREATE OR REPLACE VIEW experiment_results {{cluster}}AS
SELECT experiment, variant,
    sum(d) AS impressions, sum(m) AS clicks, count() AS users, clicks / impressions AS ctr,
    users AS n, clicks AS sum_m, impressions AS sum_d, sum(m * m) AS sum_mm, sum(d * d) AS sum_dd, sum(m * d) AS sum_md,
    if(n < 2, nan, n * greatest(0, sum_mm - 2 * ctr * sum_md + ctr * ctr * sum_dd) / (n - 1) * n / sum_d / sum_d) AS variance,
    sqrt(variance / n) AS se
FROM
(
    SELECT experiment, variant, user, toUInt64(sum(clicked)) AS m, toUInt64(count()) AS d
    FROM labels_mature
    WHERE experiment != ''
    GROUP BY experiment, variant, user
)
GROUP BY experiment, variant
COMMENT 'Clicks, users and sums of each variant of each experiment';

-- experiment_lift
-- Question: is the treatment better than the control, by how much, and may we look now?
-- Columns:  experiment, variant (each one but "control"); users, control_users, ctr, control_ctr (0 - 1);
--           diff, diff_low, diff_high (difference of the rates); lift, lift_low, lift_high (relative, 0.05 = +5 %);
--           p (always valid: look as often as you like). lift is NaN without control clicks. While the sums show
--           no variation (an arm with fewer than two users, no clicks) the intervals hold everything and p is 1.
-- Formulas: asymptotic confidence sequence (Waudby-Smith et al., arXiv 2103.06476), alpha = 0.05, tightest at n* = 5000 users:
--           half = sigma sqrt(2 (n rho^2 + 1) / (n^2 rho^2) ln(sqrt(n rho^2 + 1) / alpha)), sigma^2 = n SE^2, n = users of both
--           arms, rho^2 = (-2 ln alpha + ln(-2 ln alpha + 1)) / n*; with x = n rho^2 that is z SE;
--           p = min(1, sqrt(x + 1) exp(-x diff^2 / (2 (x + 1) SE^2))).
--           Relative: Fieller's interval with the same z. Equal to internal/stats to 1e-9 (tested).
-- Example:  SELECT lift, lift_low, lift_high, p FROM experiment_lift WHERE experiment = 'x-1'
-- Cost:     experiment_results.
CREATE OR REPLACE VIEW experiment_lift {{cluster}}AS
WITH
    0.05 AS alpha,
    5000 AS n_star,
    x * (-2 * log(alpha) + log(1 - 2 * log(alpha))) / n_star AS y,
    sqrt(2 * (y + 1) / y * (0.5 * log1p(y) - log(alpha))) AS z,
    vb + va > 0 AS informative,
    ra * ra - z * z * va AS qa,
    ra * rb AS qb,
    rb * rb - z * z * vb AS qc,
    sqrt(greatest(0, qb * qb - qa * qc)) AS root
SELECT
    experiment, variant, users, control_users, rb AS ctr, ra AS control_ctr,
    rb - ra AS diff,
    if(informative, diff - z * sqrt(va + vb), -1) AS diff_low,
    if(informative, diff + z * sqrt(va + vb), 1) AS diff_high,
    if(ra > 0, rb / ra - 1, nan) AS lift,
    if(informative AND qa > 0, greatest((qb - root) / qa, 0) - 1, -1) AS lift_low,
    if(informative AND qa > 0, (qb + root) / qa - 1, inf) AS lift_high,
    if(informative, least(1, exp(0.5 * log1p(y) - y * diff * diff / (va + vb) / (2 * (y + 1)))), 1) AS p
FROM
(
    -- One pass over experiment_results: a join of it with itself would scan the labels twice.
    SELECT experiment, arm.1 AS variant, arm.2 AS users, control.2 AS control_users,
        arm.3 AS rb, control.3 AS ra, pow(arm.4, 2) AS vb, pow(control.4, 2) AS va, toFloat64(arm.2 + control.2) AS x
    FROM
    (
        SELECT experiment, groupArray((toString(variant), users, ctr, se)) AS arms, arrayFirst(a -> a.1 = 'control', arms) AS control
        FROM experiment_results
        GROUP BY experiment
    )
    ARRAY JOIN arms AS arm
    WHERE arm.1 != 'control' AND control.1 = 'control'
)
COMMENT 'Lift of each variant over control with always-valid intervals';
