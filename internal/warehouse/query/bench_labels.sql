-- Labels for `ctrloop bench query`, made inside of the engine. Numbered arguments: 1 seed, 2 labels in all, 3 days, 4 users, 5 the
-- first label of this statement, 6 how many of them.
-- A shop with 4,000 products of 8 creatives each in 44 categories; users by a square law (a tenth of them make a third of the
-- traffic); 3 % of impressions clicked (hit) after 4 minutes on average, one in a thousand after the window (late): version 2.
-- A user is in one experiment at a time: six tenths of them in x-1 for the whole span, the others in x-2, x-3 and x-4 one after the
-- other; one in twenty impressions is outside, for exploration. Ids and hashed users are random bits, which no codec can help. A
-- propensity is that of a creative (the nth of its product) in the policy's snapshot of the hour. The first day is a Wednesday, so
-- that seven days lie in two calendar weeks, as most do: a user has up to two rows in the totals by week.
INSERT INTO labels (impression_id, event_time, version, user, product, creative, placement, position, campaign, category,
    experiment, variant, model_version, policy, propensity, bot, kind, clicked,
    click_delay_ms, clicks, weight, watermark, partition, offset, inserted_at)
WITH
    toUInt64($1) AS seed,
    sipHash64(number, seed, 1) AS h1, sipHash64(number, seed, 2) AS h2, sipHash64(number, seed, 3) AS h3,
    toUInt64(toUnixTimestamp64Milli(toDateTime64('2026-03-04 00:00:00', 3, 'UTC'))) + intDiv(number * $3 * 86400000, $2) AS ms,
    bitOr(bitOr(bitShiftLeft(ms, 16), 0x7000), bitAnd(h1, 0xfff)) AS high,
    bitOr(bitShiftLeft(toUInt64(1), 63), bitAnd(h2, 0x3fffffffffffffff)) AS low,
    toUInt64($4 * pow(bitShiftRight(h1, 12) / 4503599627370496, 2)) AS person,
    sipHash64(person, seed, 4) AS hashed,
    toUInt32(4000 * pow(bitShiftRight(h2, 32) / 4294967296, 1.5)) AS item,
    bitShiftRight(h3, 8) / 72057594037927936 AS u,
    h3 % 1000 < 30 AS hit,
    h3 % 1000 = 999 AS late,
    toInt64(-240000 * log(1 - u)) AS delay,
    intDiv(h1, 7) % 8 AS nth,
    intDiv(ms, 86400000) - 20516 AS day,
    multiIf(h2 % 20 = 0, '', hashed % 10 < 6, 'x-1', day < 2, 'x-2', day < 4, 'x-3', 'x-4') AS trial
SELECT
    reinterpretAsUUID(bitShiftLeft(toUInt128(low), 64) + toUInt128(high)), fromUnixTimestamp64Milli(toInt64(ms), 'UTC'), v, hashed,
    concat('product-', toString(item)), concat('c-', substring(lower(hex(sipHash64(item, nth))), 1, 16)),
    ['feed', 'side', 'search', 'cart'][1 + h2 % 4], 1 + h1 % 12, concat('campaign-', toString(item % 20)),
    concat('department-', toString(item % 9), '/category-', toString(item % 44)),
    trial, if(trial = '', '', if(sipHash64(hashed, trial) % 2 = 0, 'control', 'treatment')),
    concat('prompt-', substring(lower(hex(sipHash64(nth + day))), 1, 12)), concat('thompson-', toString(intDiv(ms, 3600000))),
    bitShiftRight(sipHash64(item, nth, intDiv(ms, 3600000)), 11) / 9007199254740992, h3 % 100 = 50,
    multiIf(v = 2, 'corrected', hit, 'positive', 'final_negative'), hit OR v = 2,
    multiIf(v = 2, 1800000 + delay, hit, delay, 0), hit OR v = 2, 1,
    fromUnixTimestamp64Milli(if(hit, toInt64(ms) + delay, toInt64(intDiv(ms, 1000)) * 1000 + 1801000), 'UTC'),
    h2 % 8, intDiv(number, 8) * 2 + v,
    toDateTime(intDiv(ms, 1000) + if(hit, intDiv(delay, 1000), 1802), 'UTC')
FROM (SELECT number FROM numbers_mt($5, $6))
ARRAY JOIN if(late, [1, 2], [1]) AS v
SETTINGS max_insert_threads = 2, insert_deduplicate = 0, max_partitions_per_insert_block = 0, max_execution_time = 0
