-- Exposures. Arguments: four arrays of one length: experiments, units, variants, times (Unix ms).
INSERT INTO exposures (experiment, unit, day, variant, time)
SELECT row.1, row.2, toDate(fromUnixTimestamp64Milli(row.4, 'UTC')), row.3, fromUnixTimestamp64Milli(row.4, 'UTC')
FROM (SELECT arrayJoin(arrayZip(?, ?, ?, arrayMap(t -> toInt64(t), ?))) AS row)
