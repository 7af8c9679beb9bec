package trainerbridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/internal/process"
	"ctrloop/schemas/control"
)

// Local runs jobs as child processes on this machine.
type Local struct {
	Inputs
	Timeout   time.Duration // without progress
	StopGrace time.Duration
	Log       zerolog.Logger
}

var _ Runner = (*Local)(nil)

// Run runs a job of the control log. A job that was interrupted finds its checkpoint in out/.
func (l *Local) Run(ctx context.Context, job control.JobStatus) (string, error) {
	spec, err := l.spec(job)
	if err != nil {
		return "", &JobError{FailInput, err}
	}
	return l.execute(ctx, spec, run(job))
}

// Execute writes spec.json and runs the trainer on it; it returns the folder out/ of the job.
func (l *Local) Execute(ctx context.Context, spec TrainerSpec) (string, error) {
	return l.execute(ctx, spec, 1)
}

func (l *Local) execute(ctx context.Context, spec TrainerSpec, run int) (string, error) {
	dir := l.JobDir(spec.ID)
	out := filepath.Join(dir, "out")
	if err := l.begin(dir, out, l.Log); err != nil {
		return "", fmt.Errorf("job folder: %w", err)
	}
	raw, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encode spec: %w", err)
	}
	specFile := filepath.Join(dir, "spec.json")
	if err := os.WriteFile(specFile, raw, 0o644); err != nil {
		return "", failure(FailBug, fmt.Errorf("write spec: %w", err), err.Error(), dir)
	}
	log, err := os.OpenFile(filepath.Join(dir, logFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return "", fmt.Errorf("job log: %w", err)
	}
	defer log.Close()

	runCtx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		l.watch(runCtx, stop, filepath.Join(dir, cancelFile(run)), log.Name(), filepath.Join(out, curveFile))
	}()
	err = process.Run(runCtx, process.Spec{
		Name: spec.ID, Path: l.Python, Args: []string{"-m", "ctrloop_trainer.job", specFile, "--out", out}, Dir: dir,
		Env: trainerEnv(l.Trainer), Threads: l.Threads, Stdout: log, Stderr: whatFits{log}, Grace: l.StopGrace,
		Limits: process.Limits{MemoryBytes: l.Resources.MemoryBytes, CPUs: int(math.Ceil(l.Resources.CPUs))},
	}, l.Log)
	cause := context.Cause(runCtx)
	stop(nil)
	<-watched
	switch je, ours := errors.AsType[*JobError](cause); {
	case err == nil:
		return out, nil
	case ctx.Err() != nil:
		return "", &JobError{FailInterrupted, ctx.Err()}
	case ours:
		return "", je
	}
	return "", failure(classify(err), err, err.Error(), dir)
}

// cancelInterval is how often a run looks whether it was called off.
const cancelInterval = time.Second

// watch stops a run, with the reason, when it was called off or when none of the files has grown for the time limit. It returns
// when ctx ends.
func (l *Local) watch(ctx context.Context, stop func(error), cancelFile string, files ...string) {
	go stopStalled(ctx, func() {
		stop(&JobError{FailTimeout, fmt.Errorf("stopped after %v without progress (trainer.timeout)", l.Timeout)})
	}, l.Timeout, files...)
	look := time.NewTicker(cancelInterval)
	defer look.Stop()
	for {
		if fileExists(cancelFile) {
			stop(&JobError{FailCancelled, errCancelled})
		}
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
}

// whatFits drops what cannot be written: a full disk must not break the pipe of a child that has yet to say so.
type whatFits struct{ w io.Writer }

func (f whatFits) Write(p []byte) (int, error) {
	_, _ = f.w.Write(p)
	return len(p), nil
}
