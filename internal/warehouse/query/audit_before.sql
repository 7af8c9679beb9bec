-- Minutes before a time in which the warehouse differs from what the joiner says. Argument: Unix seconds.
SELECT count() FROM audit_mismatch WHERE minute < toDateTime(?, 'UTC')
