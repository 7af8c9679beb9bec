package runner

import (
	"context"
	"errors"
	"io"
	"syscall"
	"time"
)

// Cluster is a scheduler that runs tasks on machines of its own. Its methods may be called again after any failure.
type Cluster interface {
	// Submit makes a task. One that is there already under its name is left as it is, and that is no error. [ErrRefused] says
	// that the same task would be refused again; every other error may pass.
	Submit(ctx context.Context, t Task) error
	// Look says where a task is: [ErrUnknown] where the cluster knows none of that name; other errors mean that it could not be asked.
	Look(ctx context.Context, name string) (Status, error)
	// Stop asks for the end of a task: SIGTERM first. It returns before the end; a task that has ended or is unknown is no error.
	Stop(ctx context.Context, name string) error
	// Log writes what the cluster itself has kept of a task's output; nothing, where it keeps none.
	Log(ctx context.Context, name string, w io.Writer) error
}

// ErrUnknown means that the cluster knows no task of that name.
var ErrUnknown = errors.New("the cluster knows no such task")

// ErrRefused means that the cluster will not take the task as it is, however often it is asked.
var ErrRefused = errors.New("the cluster refuses the task")

// Task is a script to run once.
type Task struct {
	// Name of the task, [a-z0-9-], at most MaxName bytes: two tasks of one name are one task.
	Name string
	// Script to run with sh, and the folder to run it in: paths of the cluster's machines.
	Script, Dir string
	// Log is a file that the script writes to, a path of the cluster's machines.
	Log string
	// Labels for people who look at the cluster: names and values of [a-zA-Z0-9-].
	Labels map[string]string
	// Resources that it takes.
	Resources Resources
	// Grace between SIGTERM and SIGKILL.
	Grace time.Duration
}

// MaxName is the longest name of a task, in bytes: what Kubernetes leaves of a label for the names of pods.
const MaxName = 57

// Resources of a job. Zero leaves a resource to the cluster's own default, or on this machine unlimited.
type Resources struct {
	// CPUs of a job. On this machine, whole ones.
	CPUs float64 `yaml:"cpus,omitempty"`
	// MemoryBytes of a job; on this machine, of each of its processes.
	MemoryBytes int64 `yaml:"memory_bytes,omitempty"`
	// GPUs of a job; clusters only.
	GPUs int `yaml:"gpus,omitempty"`
}

// State of a task.
type State string

// States of a task. The list is closed.
const (
	Waiting   State = "waiting" // for resources, a quota, an image
	Running   State = "running"
	Succeeded State = "succeeded" // exit status 0
	Failed    State = "failed"
)

// Status is what a cluster says of a task.
type Status struct {
	State State
	// Cause of a failure that is not the task's own exit.
	Cause Cause
	// Exit status of the script where it failed by itself; 0 where the cluster does not know it.
	Exit int
	// Reason in the cluster's words, for people.
	Reason string
}

// Cause of a failure. The list is closed.
type Cause string

// Causes.
const (
	ByItself  Cause = ""          // its exit status says more
	Memory    Cause = "memory"    // it was killed for lack of memory
	Stopped   Cause = "stopped"   // somebody asked the cluster for its end
	Preempted Cause = "preempted" // the cluster took its place away
	Lost      Cause = "lost"      // its machine, or the cluster's own part of it, is gone
	Deadline  Cause = "deadline"  // it ran into the cluster's time limit
	Unstarted Cause = "unstarted" // the cluster gave up starting it
)

// ExitTaken is the exit status of a task that found its run taken: by a copy of it that was before, or by whoever called it off.
const ExitTaken = 7

// Exit turns a status as shells and languages give it into one status: a signal n is 128+n, as sh has it, or -n.
func Exit(code int) int {
	if code < 0 {
		return 128 - code
	}
	return code
}

// WaitStatus turns a wait status, as wait(2) gives it, into an exit status.
func WaitStatus(status int) int {
	w := syscall.WaitStatus(status)
	if w.Signaled() {
		return 128 + int(w.Signal())
	}
	return w.ExitStatus()
}
