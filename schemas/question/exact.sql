-- Is every label of the join here exactly once? (No rows: yes.)
SELECT partition, minute, want_labels, labels, want_positive, positive
FROM audit_mismatch
ORDER BY minute, partition
