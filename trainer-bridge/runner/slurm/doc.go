// Package slurm runs tasks by Slurm's REST API (slurmrestd, v0.0.38).
//
// What a client has to know, seen at Slurm 22.05 (fake_test.go has its answers): there is no key that makes a submission idempotent,
// so tasks are looked for by name; a submission that is taken can carry errors beside its job_id; an exit code is a wait status; an
// unknown job, and a token that is no good, are answered with 500; ended jobs are forgotten after MinJobAge, five minutes by default.
package slurm
