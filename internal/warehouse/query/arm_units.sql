-- Units of an experiment that the control log does not have, by the variant of their first impression, at most 65 variants.
-- Argument: the experiment.
SELECT arm, toInt64(count()) AS units
FROM
(
    SELECT toString(argMin(variant, event_time)) AS arm
    FROM labels_mature
    WHERE experiment = ? AND user != 0 AND variant != ''
    GROUP BY user
)
GROUP BY arm
ORDER BY arm
LIMIT 65
