-- Every verdict on every impression.
SELECT impression_id, toInt8(kind), clicked, version FROM labels
