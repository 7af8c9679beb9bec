package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

// Spec says what to run.
type Spec struct {
	// Name of the process in logs and metrics.
	Name string
	// Path of the program, then its arguments.
	Path string
	Args []string
	// Dir to run in; empty is the parent's.
	Dir string
	// Env holds NAME=value pairs on top of the parent's environment.
	Env []string
	// Threads bounds the child's numeric libraries (OMP_NUM_THREADS and its relatives); 0 leaves them alone.
	Threads int
	// Limits of its memory and processors. A child that cannot be limited does not start.
	Limits Limits
	// Stdin of the child; nil is empty.
	Stdin io.Reader
	// Stdout, where set, gets the child's output as it is; nil logs it line by line.
	Stdout io.Writer
	// Stderr likewise; the end of it is kept for the error in any case.
	Stderr io.Writer
	// LogLevel at which the child's lines are logged; the zero value is debug. The last lines are in the error
	// of a process that failed, whatever the level.
	LogLevel zerolog.Level
	// Grace is how long the child may take to stop after SIGTERM before it is killed; 0 is DefaultGrace.
	Grace time.Duration
}

// DefaultGrace between SIGTERM and SIGKILL: enough for a training job to write a checkpoint.
const DefaultGrace = 10 * time.Second

// pipeDelay is how long output of a grandchild that still holds the pipes is waited for after the child's exit.
const pipeDelay = 2 * time.Second

// Outcome is the kind of a child's end. The list is closed.
type Outcome string

// Outcomes of a process.
const (
	// OutcomeDone is exit status 0.
	OutcomeDone Outcome = "done"
	// OutcomeFailed is another exit status.
	OutcomeFailed Outcome = "failed"
	// OutcomeKilled is an end by a signal that was not sent by us: a crash (SIGSEGV, SIGABRT), or SIGKILL, which
	// on Linux most often is the kernel out of memory.
	OutcomeKilled Outcome = "killed"
	// OutcomeStopped is an end that we asked for.
	OutcomeStopped Outcome = "stopped"
	// OutcomeNotStarted means that there was no process: no such program, no memory, no permission.
	OutcomeNotStarted Outcome = "not_started"
)

// Exit says how a process ended.
type Exit struct {
	Outcome Outcome
	// Code is the exit status; -1 where a signal ended the process or it never started.
	Code int
	// Signal that ended the process, or 0.
	Signal syscall.Signal
}

// Error is the error of a process that did not end with status 0.
type Error struct {
	Name string
	Exit Exit
	// Tail is the end of what the process wrote to stderr.
	Tail string
	// Err is the cause where the process did not start.
	Err error
}

// Error implements error.
func (e *Error) Error() string {
	what := "process " + e.Name + " "
	switch {
	case e.Exit.Outcome == OutcomeNotStarted:
		return what + "did not start: " + e.Err.Error()
	case e.Exit.Outcome == OutcomeStopped:
		what += "was stopped"
	case e.Exit.Signal == syscall.SIGKILL:
		what += "was killed (SIGKILL; on Linux most often for lack of memory)"
	case e.Exit.Signal != 0:
		what += "was ended by signal " + e.Exit.Signal.String()
	default:
		what += "failed with exit status " + strconv.Itoa(e.Exit.Code)
	}
	if e.Tail != "" {
		what += "; its last words: " + e.Tail
	}
	return what
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Run runs a process to its end and logs its output. When ctx is done the process group gets SIGTERM, and
// after spec.Grace SIGKILL. A process that did not end with status 0 is an [*Error]; one stopped by ctx has the
// outcome stopped, whatever its status, and wraps ctx.Err().
func Run(ctx context.Context, spec Spec, log zerolog.Logger) error {
	child, err := start(spec, log)
	if err != nil {
		return err
	}
	select {
	case <-child.done:
	case <-ctx.Done():
		child.stop()
	}
	return child.result(ctx)
}

// child is a started process.
type child struct {
	name    string
	cmd     *exec.Cmd
	grace   time.Duration
	tail    *lines
	done    chan struct{} // closed after waitErr is set
	waitErr error
	stopped bool // by us; only the goroutine that called start touches it
}

// start starts the process and forwards its output.
func start(spec Spec, log zerolog.Logger) (*child, error) {
	cmd := spec.Limits.command(spec.Path, spec.Args)
	cmd.Dir = spec.Dir
	cmd.Env = append(os.Environ(), append(ThreadEnv(spec.Threads), spec.Env...)...)
	cmd.Stdin = spec.Stdin
	cmd.SysProcAttr = sysProcAttr()
	cmd.WaitDelay = pipeDelay
	log = log.With().Str("process", spec.Name).Logger()
	outs, errs := newLines(log, spec.LogLevel), newLines(log, spec.LogLevel)
	cmd.Stdout, cmd.Stderr = outs, errs
	if spec.Stdout != nil {
		cmd.Stdout = spec.Stdout
	}
	if spec.Stderr != nil {
		errs.log = zerolog.Nop()
		cmd.Stderr = io.MultiWriter(spec.Stderr, errs)
	}
	c := &child{name: spec.Name, cmd: cmd, grace: spec.Grace, tail: errs, done: make(chan struct{})}
	if c.grace <= 0 {
		c.grace = DefaultGrace
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // see the package comment
		defer runtime.UnlockOSThread()
		err := startWithin(cmd, spec.Limits)
		started <- err
		if err != nil {
			return
		}
		c.waitErr = cmd.Wait()
		outs.flush()
		errs.flush()
		close(c.done)
	}()
	if err := <-started; err != nil {
		return nil, &Error{Name: spec.Name, Exit: Exit{Outcome: OutcomeNotStarted, Code: -1}, Err: err}
	}
	return c, nil
}

// startWithin starts a child under its limits, or not at all.
func startWithin(cmd *exec.Cmd, limits Limits) error {
	undo, err := limits.confineThread()
	if err != nil {
		return err
	}
	defer undo()
	return cmd.Start()
}

// ThreadEnv returns the variables (NAME=value) that numeric libraries read their number of threads from.
func ThreadEnv(threads int) []string {
	if threads <= 0 {
		return nil
	}
	n := strconv.Itoa(threads)
	return []string{
		"OMP_NUM_THREADS=" + n, "MKL_NUM_THREADS=" + n, "OPENBLAS_NUM_THREADS=" + n,
		"NUMEXPR_NUM_THREADS=" + n, "RAYON_NUM_THREADS=" + n,
		"TOKENIZERS_PARALLELISM=false", // its thread pool warns and can deadlock after a fork
	}
}

// stop ends the process group: SIGTERM, then SIGKILL after the grace. It returns when the process has ended.
func (c *child) stop() {
	defer c.signal(syscall.SIGKILL) // what the child left behind in its group
	select {
	case <-c.done: // by itself
		return
	default:
	}
	c.stopped = true
	c.signal(syscall.SIGTERM)
	timer := time.NewTimer(c.grace)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-timer.C:
		c.signal(syscall.SIGKILL)
		<-c.done
	}
}

// signal sends sig to the whole group; the group's id is the child's, see sysProcAttr.
func (c *child) signal(sig syscall.Signal) { _ = syscall.Kill(-c.cmd.Process.Pid, sig) }

// result is the error of an ended process, nil for status 0.
func (c *child) result(ctx context.Context) error {
	exit := c.exit()
	if exit.Outcome == OutcomeDone {
		return nil
	}
	err := &Error{Name: c.name, Exit: exit, Tail: c.tail.tail()}
	switch {
	case exit.Outcome == OutcomeStopped:
		err.Err = ctx.Err()
	case c.cmd.ProcessState == nil:
		err.Err = c.waitErr
	}
	return err
}

// exit classifies the end of the process.
func (c *child) exit() Exit {
	exit := Exit{Outcome: OutcomeFailed, Code: -1}
	if state := c.cmd.ProcessState; state != nil {
		exit.Code = state.ExitCode()
		if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			exit.Outcome, exit.Signal = OutcomeKilled, status.Signal()
		}
	}
	switch {
	case c.stopped:
		exit.Outcome = OutcomeStopped
	case exit.Code == 0:
		exit.Outcome = OutcomeDone
	}
	return exit
}

// ExitOf returns how the process behind err ended: done for nil, and what an [*Error] says. ok is false for
// other errors.
func ExitOf(err error) (exit Exit, ok bool) {
	if err == nil {
		return Exit{Outcome: OutcomeDone}, true
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Exit, true
	}
	return Exit{}, false
}

// String is the outcome with its status or signal, for logs.
func (e Exit) String() string {
	switch {
	case e.Signal != 0:
		return fmt.Sprintf("%s (%s)", e.Outcome, e.Signal)
	case e.Outcome == OutcomeFailed:
		return fmt.Sprintf("%s (status %d)", e.Outcome, e.Code)
	default:
		return string(e.Outcome)
	}
}
