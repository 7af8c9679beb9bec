-- Minutes in which the warehouse differs from what the joiner says.
SELECT count() FROM audit_mismatch
