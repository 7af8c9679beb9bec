package trainerbridge

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"time"

	"ctrloop/internal/process"
	"ctrloop/schemas/control"
)

// Runner runs jobs, here or on a cluster.
type Runner interface {
	// Run runs one job to its end and returns the folder with its results. The error of a job that failed is a [*JobError]. When
	// ctx ends, a job on this machine is stopped with a checkpoint; one on a cluster goes on, and the next Run finds it.
	Run(ctx context.Context, job control.JobStatus) (outDir string, err error)
	// Cancel calls a job off, wherever it is: one that waits does not start, one that runs is stopped. It returns before the end.
	// A Run of the job, now or later, ends with the class cancelled.
	Cancel(ctx context.Context, job control.JobStatus) error
	// Logs writes what the job has printed so far.
	Logs(ctx context.Context, job control.JobStatus, w io.Writer) error
}

// JobError is the end of a job that did not succeed, by class.
type JobError struct {
	Class FailureClass
	Err   error
}

func (e *JobError) Error() string { return fmt.Sprintf("%s: %v", e.Class, e.Err) }
func (e *JobError) Unwrap() error { return e.Err }

// FailureClass of a job, from its exit status.
type FailureClass string

// Failure classes and the exit statuses of the trainer that mean them.
const (
	FailBug         FailureClass = "bug"           // 1: a defect; the log has the traceback
	FailInput       FailureClass = "bad_input"     // 2: the specification or its data are wrong; trying again will not help
	FailMemory      FailureClass = "out_of_memory" // 3, or killed by the kernel
	FailDiverged    FailureClass = "diverged"      // 4: not-a-number
	FailInterrupted FailureClass = "interrupted"   // 5: stopped with a checkpoint; runs on when started again
	FailEvidence    FailureClass = "no_evidence"   // 6: too few clicks to learn from; the next data set may have more
	FailTimeout     FailureClass = "timeout"
	FailIncomplete  FailureClass = "incomplete"           // it ended well, but what it left lacks a file
	FailDisk        FailureClass = "disk_full"            // it could not write
	FailCancelled   FailureClass = control.ClassCancelled // somebody called it off
	FailUnstarted   FailureClass = "not_started"          // its cluster did not find room for it in time
	FailLost        FailureClass = "lost"                 // its cluster knows it no more, and nobody saw its end
	FailRefused     FailureClass = "refused"              // its cluster would not take it
)

// hopeless are classes in which the same job fails the same way again: only other data or another configuration help.
var hopeless = []FailureClass{FailInput, FailEvidence, FailDiverged, FailCancelled, FailRefused}

// retry says whether a job that failed its nth attempt runs again, and after how long: Backoff, doubled with each.
func (c Config) retry(class FailureClass, attempt int) (wait time.Duration, again bool) {
	if slices.Contains(hopeless, class) || attempt > c.Retries {
		return 0, false
	}
	const longest = 6 * time.Hour
	wait = c.Backoff
	for range attempt - 1 {
		wait = min(2*wait, longest)
	}
	return wait, true
}

// classify names the class of an ended child process.
func classify(err error) FailureClass {
	exit, ok := process.ExitOf(err)
	switch {
	case !ok || exit.Outcome == process.OutcomeNotStarted:
		return FailBug
	case exit.Signal != 0:
		return classOf(128 + int(exit.Signal))
	}
	return classOf(exit.Code)
}

// classOf names the class of an exit status; a signal n is 128+n, as sh has it.
func classOf(status int) FailureClass {
	switch status {
	case 2:
		return FailInput
	case 3, 128 + int(syscall.SIGKILL):
		return FailMemory
	case 4:
		return FailDiverged
	case 5:
		return FailInterrupted
	case 6:
		return FailEvidence
	}
	if status > 128 {
		return FailInterrupted
	}
	return FailBug
}

// diskFull are what programs say of a full disk, ENOSPC and EDQUOT.
var diskFull = []string{"No space left on device", "Disk quota exceeded", "no space left on device"}

// failure is the error of a job that ended with a failure of its own, from its last words and the folder that it wrote to. A full
// disk has no exit status of its own.
func failure(class FailureClass, err error, tail, dir string) *JobError {
	full := slices.ContainsFunc(diskFull, func(words string) bool { return strings.Contains(tail, words) })
	if free, known := freeBytes(dir); class == FailBug && (full || known && free == 0) {
		return &JobError{FailDisk, fmt.Errorf("the disk of %s is full (%d MiB are free there): %w", dir, free>>20, err)}
	}
	return &JobError{class, err}
}

// freeBytes of the disk that a folder lies on.
func freeBytes(dir string) (free int64, known bool) {
	var s syscall.Statfs_t
	if syscall.Statfs(dir, &s) != nil {
		return 0, false
	}
	return int64(s.Bavail) * int64(s.Bsize), true //nolint:unconvert // other systems have other types
}
