"""Failure classes of a job, and the exit codes by which the Go side tells them apart."""

OK, BUG, BAD_INPUT, OUT_OF_MEMORY, DIVERGED, INTERRUPTED, NO_EVIDENCE = range(7)


class JobError(Exception):
    """An expected failure: the message says what, why, and what to do; exit_code is the process's."""

    exit_code = BUG


class BadInputError(JobError):
    """The specification, a file it names or the data is wrong: repeating the job cannot help."""

    exit_code = BAD_INPUT


class NoEvidenceError(JobError):
    """The data are in order but say too little to learn from: the next data set may say more."""

    exit_code = NO_EVIDENCE


class KilledError(JobError):
    """The kernel ended a child process (SIGKILL), on Linux most often for lack of memory."""

    exit_code = OUT_OF_MEMORY


class DivergedError(JobError):
    """The loss or the weights are no longer finite."""

    exit_code = DIVERGED


class InterruptedJobError(JobError):
    """SIGTERM came; what is finished is checkpointed, the same command continues from there."""

    exit_code = INTERRUPTED
