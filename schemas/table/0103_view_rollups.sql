-- rollup_cells
-- Question: which days are rolled up, and is that still what labels would give?
-- Columns:  day, generation (of the rollup tables), until (end of what is rolled up), week_generation (of the week's totals of
--           users that have the day in them; 0: none).
-- Rule:     a day counts while as many rows have been sent to its hours as when it was rolled up, and all of it is
--           mature. A week counts while each of the days that it was made of counts, in the generation that it was made of.
--           The list is made once in a query, as a scalar: several readers in one query must not see two lists.
-- Example:  SELECT * FROM rollup_cells ORDER BY day
-- Cost:     a row an hour.
CREATE OR REPLACE VIEW rollup_cells {{cluster}}AS
SELECT cell.1 AS day, cell.2 AS generation, cell.3 AS until, cell.4 AS week_generation
FROM
(
    SELECT arrayJoin((
        SELECT groupArray((d.1, d.2, d.3, if(whole AND has(week_days, (d.1, d.2)), w, 0)))
        FROM
        (
            SELECT groupArray((rolled_day, g, u)) AS current, any(generation) AS w, any(days) AS week_days,
                hasAll(arrayMap(c -> (c.1, c.2), current), week_days) AS whole
            FROM
            (
                SELECT rolled_day, any(generation) AS g, any(until) AS u, toMonday(rolled_day) AS week
                FROM (SELECT toDate(hour, 'UTC') AS rolled_day, hour, sum(rows) AS sent FROM label_hours GROUP BY hour) AS hours
                INNER JOIN (SELECT day AS rolled_day, generation, until, touched FROM rollups FINAL) AS made USING (rolled_day)
                GROUP BY rolled_day
                HAVING sumIf(sent, hour < until) = any(touched)
                    AND u <= (
                        SELECT toStartOfHour(toDateTime(fromUnixTimestamp64Milli(greatest(horizon_ms, 0) + 1, 'UTC'), 'UTC'))
                        FROM label_horizon)
            ) AS cells
            LEFT JOIN (SELECT week, generation, days FROM rollup_weeks FINAL) AS weeks USING (week)
            GROUP BY week
        )
        ARRAY JOIN current AS d
    )) AS cell
)
COMMENT 'Days whose rollup is current';

{{define "rolled_days"}}SELECT day FROM rollup_cells WHERE until = toDateTime(day + 1, 'UTC'){{end -}}
{{define "rolled_hours"}}SELECT toDateTime(day, 'UTC') + 3600 * arrayJoin(range(toUInt32(dateDiff('hour', toDateTime(day, 'UTC'), until))))
    FROM rollup_cells{{end -}}
{{define "not_rolled"}}event_time >= (
        SELECT ifNull(minOrNull(hour), toDateTime(4294967295, 'UTC')) FROM label_hours WHERE hour GLOBAL NOT IN ({{template "rolled_hours"}}))
    AND event_time <= (SELECT horizon FROM label_horizon)
    AND toDate(event_time, 'UTC') GLOBAL NOT IN ({{template "rolled_days"}})
    AND toStartOfHour(toDateTime(event_time, 'UTC')) GLOBAL NOT IN ({{template "rolled_hours"}}){{end -}}
-- labels_unrolled
-- Question: which mature impressions are in no current rollup?
-- Columns:  those of labels; one row per impression.
-- Rule:     labels_mature outside of rollup_cells. First of all, by one comparison, what is younger than the first hour of
--           label_hours that is not rolled up: mostly that is the last hour or two. The condition on days lets whole partitions be
--           left out. All versions of an impression have one event time, so the search for newer ones is bounded alike.
--           These conditions stand in PREWHERE, which FINAL does not fill by itself: rows that are there twice have the same time, so
--           nothing is lost, and other columns are read for the rest only.
-- Example:  SELECT count() FROM labels_unrolled
-- Cost:     the hours since the last rollup, and days that a correction has touched since; DB.RollUp makes it small.
CREATE OR REPLACE VIEW labels_unrolled {{cluster}}AS
SELECT *
FROM labels FINAL
PREWHERE {{template "not_rolled"}}
WHERE {{version_key "version"}} GLOBAL NOT IN
    (
        SELECT {{version_key "version - 1"}}
        FROM labels
        WHERE version > 1 AND {{template "not_rolled"}}
    )
    AND bot = 0 AND {{trusted}} AND {{has_time}}
COMMENT 'Mature impressions that are in no current rollup';

-- ctr_hours
-- Question: impressions and clicks by hour, product and model version?
-- Columns:  day, hour (event time, UTC); experiment, variant, product, category, model_version; impressions, clicks
--           (impressions with a click). Several rows may have the same key: add them up.
-- Example:  SELECT hour, sum(clicks) / sum(impressions) AS ctr FROM ctr_hours WHERE product = 'mug-01' GROUP BY hour ORDER BY hour
-- Cost:     one rollup row for each key, and labels_unrolled.
CREATE OR REPLACE VIEW ctr_hours {{cluster}}AS
SELECT day, hour, experiment, variant, product, category, model_version, impressions, clicks
FROM rollup_ctr_hours
WHERE (day, generation) GLOBAL IN (SELECT day, generation FROM rollup_cells)
UNION ALL
SELECT toDate(event_time, 'UTC') AS day, toStartOfHour(toDateTime(event_time, 'UTC')) AS hour,
    experiment, variant, product, category, model_version, count() AS impressions, sum(clicked) AS clicks
FROM labels_unrolled
GROUP BY day, hour, experiment, variant, product, category, model_version
COMMENT 'Impressions and clicks by hour';

-- ctr_days
-- Question: impressions and clicks by day and everything that an ad is told apart by?
-- Columns:  day (event time, UTC); experiment, variant, product, category, creative, placement,
--           model_version; impressions, clicks; first_seen, last_seen (event time). Several rows may have the same key: add them up.
-- Example:  SELECT day, sum(clicks) / sum(impressions) AS ctr FROM ctr_days GROUP BY day ORDER BY day
-- Cost:     one rollup row for each key, and labels_unrolled.
CREATE OR REPLACE VIEW ctr_days {{cluster}}AS
SELECT day, experiment, variant, product, category, creative, placement, model_version, impressions, clicks, first_seen, last_seen
FROM rollup_ctr_days
WHERE (day, generation) GLOBAL IN (SELECT day, generation FROM rollup_cells)
UNION ALL
SELECT toDate(event_time, 'UTC') AS day, experiment, variant, product, category, creative, placement, model_version,
    count() AS impressions, sum(clicked) AS clicks, min(event_time) AS first_seen, max(event_time) AS last_seen
FROM labels_unrolled
GROUP BY day, experiment, variant, product, category, creative, placement, model_version
COMMENT 'Impressions and clicks by day';

-- user_days
-- Question: impressions and clicks of each user by day?
-- Columns:  day, experiment (empty: none), variant, user (salted hash; 0: impressions without a user, which are not one
--           user's); impressions, clicks. Several rows may have the same key: add them up.
-- Example:  SELECT count() FROM (SELECT user FROM user_days GROUP BY user HAVING sum(impressions) > 100)
-- Cost:     one rollup row for each user, day and experiment, and labels_unrolled.
CREATE OR REPLACE VIEW user_days {{cluster}}AS
SELECT day, experiment, variant, user, impressions, clicks
FROM rollup_users
WHERE (day, generation) GLOBAL IN (SELECT day, generation FROM rollup_cells)
UNION ALL
SELECT toDate(event_time, 'UTC') AS day, experiment, variant, user, toUInt32(count()) AS impressions, toUInt32(sum(clicked)) AS clicks
FROM labels_unrolled
GROUP BY day, experiment, variant, user
COMMENT 'Impressions and clicks of each user by day';

-- experiment_arms
-- Question: which variants has each experiment had?
-- Columns:  experiment, variant; arm (a number for the two, for user_totals).
-- Example:  SELECT * FROM experiment_arms ORDER BY experiment, variant
-- Cost:     a few rows.
CREATE OR REPLACE VIEW experiment_arms {{cluster}}AS
SELECT DISTINCT experiment, variant, {{arm}} AS arm
FROM label_arms
WHERE experiment != ''
COMMENT 'Variants of each experiment';

-- user_totals
-- Question: impressions and clicks of each user in each experiment?
-- Columns:  arm (of experiment_arms), user (salted hash; 0: impressions without a user, which are not one user's);
--           impressions, clicks. Several rows may have the same key: add them up.
-- Note:     arm is a hash of 64 bits of both names: to group by names costs three times as much. Join with experiment_arms at the end.
-- Example:  SELECT max(n) FROM (SELECT sum(impressions) AS n FROM user_totals GROUP BY arm, user)
-- Cost:     one rollup row for each user, experiment and week, or day where the week has none; and each row of labels_unrolled.
CREATE OR REPLACE VIEW user_totals {{cluster}}AS
SELECT arm, user, impressions, clicks
FROM rollup_users_weeks
WHERE (week, generation) GLOBAL IN (SELECT toMonday(day), week_generation FROM rollup_cells WHERE week_generation != 0)
UNION ALL
SELECT {{arm}} AS arm, user, impressions, clicks
FROM rollup_users
WHERE experiment != '' AND (day, generation) GLOBAL IN (SELECT day, generation FROM rollup_cells WHERE week_generation = 0)
UNION ALL
SELECT {{arm}} AS arm, user, toUInt32(1) AS impressions, toUInt32(clicked) AS clicks
FROM labels_unrolled
WHERE experiment != ''
COMMENT 'Impressions and clicks of each user in each experiment';
