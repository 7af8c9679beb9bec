-- labels made while the circuit breaker of their slice was open. Without a cluster both statements are of one table.
ALTER TABLE {{local "labels"}} {{cluster}}ADD COLUMN IF NOT EXISTS suspect UInt8 COMMENT '1: made while the circuit breaker was open, not to be learned from' CODEC(ZSTD(1));
ALTER TABLE labels {{cluster}}ADD COLUMN IF NOT EXISTS suspect UInt8 COMMENT '1: made while the circuit breaker was open, not to be learned from';
