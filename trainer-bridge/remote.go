package trainerbridge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/internal/artifact"
	"ctrloop/internal/process"
	"ctrloop/schemas/control"
	"ctrloop/trainer-bridge/runner"
)

// Remote runs jobs on a cluster that shares the folder of jobs with this machine.
//
// A run is a task under a name that the control log alone decides, so that any bridge, also one that starts after a crash, finds
// what is there and makes nothing twice. What a run has come to is a note in the job's folder (exit-N), written by the run itself:
// clusters forget tasks, and their servers go down. The cluster's word counts only where there is no note.
type Remote struct {
	Inputs        // Python is a path of the cluster's machines
	Cluster       runner.Cluster
	Paths         []PathMap     // how the cluster sees the folders of this machine
	Interval      time.Duration // between two looks
	Timeout       time.Duration // without progress, once it runs
	StartTimeout  time.Duration // of waiting for resources
	LostAfter     time.Duration // how long a cluster may not know a task, or its note be missing
	StopGrace     time.Duration
	CallFailed    func(error) // told of each call that got no answer; may be nil
	Log           zerolog.Logger
	lastComplaint string
}

var _ Runner = (*Remote)(nil)

// Run submits the job's run, or finds it on the cluster, and waits for its end. When ctx ends, the run goes on there.
func (r *Remote) Run(ctx context.Context, job control.JobStatus) (string, error) {
	f := r.files(job)
	task, err := r.prepare(job, f)
	if err != nil {
		return "", err
	}
	w := &watch{r: r, f: f, task: task, curve: newProgress(r.Timeout, time.Now())}
	return w.run(ctx)
}

// Cancel calls off the run that a job is at.
func (r *Remote) Cancel(ctx context.Context, job control.JobStatus) error {
	if err := r.Inputs.Cancel(ctx, job); err != nil {
		return err
	}
	if _, err := r.files(job).callOff(); err != nil {
		return fmt.Errorf("cancel job %s: %w", job.ID, err)
	}
	return r.Cluster.Stop(ctx, r.name(job))
}

// Logs writes what the job has printed; where it has not come so far, what its cluster has kept of the run.
func (r *Remote) Logs(ctx context.Context, job control.JobStatus, w io.Writer) error {
	if fileExists(filepath.Join(r.JobDir(job.ID), logFile)) {
		return r.Inputs.Logs(ctx, job, w)
	}
	err := r.Cluster.Log(ctx, r.name(job), w)
	if errors.Is(err, runner.ErrUnknown) {
		return nil
	}
	return err
}

// name of the task of the run that a job is at. The folder is part of it: instances that learn from the same data share a cluster.
func (r *Remote) name(job control.JobStatus) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%s\x00%s", r.JobDir(job.ID), job.ID, job.Spec)
	id := strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			return c
		}
		return '-'
	}, strings.ToLower(job.ID))
	return fmt.Sprintf("ctrloop-%s-%.10s-%d", strings.Trim(id[:min(30, len(id))], "-"), hex.EncodeToString(h.Sum(nil)), run(job))
}

// runFiles are the files by which a run and its bridge know of each other, all in the job's folder.
type runFiles struct {
	dir string
	run int
}

func (r *Remote) files(job control.JobStatus) runFiles { return runFiles{r.JobDir(job.ID), run(job)} }

// path of one of the run's files: spec-N.json, run-N.sh, claim-N, exit-N, cancel-N, lost-N.
func (f runFiles) path(name string) string { return filepath.Join(f.dir, fmt.Sprintf(name, f.run)) }

// callOff takes the claim on the run from this side. A run takes it before anything else, and gives up where it is taken: so no second
// copy of a run can begin, and none at all once never is true. Making a folder is atomic, also over NFS.
func (f runFiles) callOff() (never bool, err error) {
	claim := f.path("claim-%d")
	if err := os.Mkdir(claim, 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
		return false, err
	} else if err == nil {
		err = os.WriteFile(filepath.Join(claim, calledOff), nil, 0o644)
		return err == nil, err
	}
	return f.neverBegins(), nil
}

// calledOff in a run's claim says that the claim is the bridge's.
const calledOff = "called-off"

func (f runFiles) neverBegins() bool { return fileExists(filepath.Join(f.path("claim-%d"), calledOff)) }

func (f runFiles) cancelled() bool { return fileExists(f.path("cancel-%d")) }

// lost notes that the run may still be writing.
func (f runFiles) lost() error { return artifact.WriteFile(f.path("lost-%d"), nil, 0o644) }

// exit reads the run's note of its end.
func (f runFiles) exit() (status int, there bool, err error) {
	raw, err := os.ReadFile(f.path("exit-%d"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	status, err = strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || status < 0 || status > 255 {
		return 0, true, fmt.Errorf("%s says %q: want an exit status", f.path("exit-%d"), runner.Words(raw))
	}
	return status, true, nil
}

// tail is the end of what the job printed.
func (f runFiles) tail() string {
	const most = 2000
	file, err := os.Open(filepath.Join(f.dir, logFile))
	if err != nil {
		return ""
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil {
		_, _ = file.Seek(max(0, info.Size()-most), io.SeekStart)
	}
	raw, _ := io.ReadAll(io.LimitReader(file, most))
	return strings.TrimSpace(strings.ToValidUTF8(string(raw), ""))
}

// prepare writes what the run needs into the job's folder, once: the script comes last, and what has a script is as it was.
func (r *Remote) prepare(job control.JobStatus, f runFiles) (runner.Task, error) {
	dirThere, err := share(r.Paths).there(f.dir)
	if err != nil {
		return runner.Task{}, &JobError{FailInput, fmt.Errorf("jobs folder: %w", err)}
	}
	script := f.path("run-%d.sh")
	task := runner.Task{
		Name: r.name(job), Dir: dirThere, Script: filepath.Join(dirThere, filepath.Base(script)), Log: filepath.Join(dirThere, logFile),
		Labels: map[string]string{"job": job.ID, "kind": job.Kind}, Resources: r.Resources, Grace: r.StopGrace,
	}
	if fileExists(script) {
		return task, nil
	}
	spec, err := r.spec(job)
	if err == nil {
		spec, err = share(r.Paths).translate(spec, r.Python)
	}
	if err != nil {
		return task, &JobError{FailInput, err}
	}
	trainer, err := share(r.Paths).there(r.Trainer)
	if err != nil {
		return task, &JobError{FailInput, fmt.Errorf("trainer: %w", err)}
	}
	if err := os.MkdirAll(f.dir, 0o777); err != nil {
		return task, fmt.Errorf("job folder: %w", err)
	}
	out := outFolder(f.dir, f.run)
	if err := r.begin(f.dir, out, r.Log); err != nil {
		return task, failure(FailBug, fmt.Errorf("job folder: %w", err), err.Error(), f.dir)
	}
	raw, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return task, fmt.Errorf("encode spec: %w", err)
	}
	err = errors.Join(
		artifact.WriteFile(f.path("spec-%d.json"), raw, 0o644),
		artifact.WriteFile(script, []byte(r.script(job.ID, f.run, dirThere, filepath.Base(out), trainer)), 0o755))
	if err != nil {
		return task, failure(FailBug, fmt.Errorf("job folder: %w", err), err.Error(), f.dir)
	}
	now := time.Now() // of this machine's clock, see watch.waiting
	return task, os.Chtimes(script, now, now)
}

// exitNoFolder is the exit status of a script that finds no folder of its job.
const exitNoFolder = 8

// script is what the cluster runs. It needs a POSIX shell, and what of coreutils every image has.
func (r *Remote) script(id string, run int, dir, out, trainer string) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("#!/bin/sh")
	line("# Run %d of job %s, written by ctrloop.", run, id)
	line("cd %s || { echo 'the folder of the job is not here: is it shared with this machine?'; exit %d; }", quote(dir), exitNoFolder)
	line("# Who makes this folder has the run: another copy of it, or whoever called it off, has been before.")
	line("mkdir claim-%d || { echo 'another copy of this run has begun, or it was called off'; exit %d; }", run, runner.ExitTaken)
	line("echo %s", quote(fmt.Sprintf("ctrloop job %s, run %d; its log is %s/%s", id, run, dir, logFile)))
	for _, v := range append(trainerEnv(trainer), process.ThreadEnv(r.Threads)...) {
		name, value, _ := strings.Cut(v, "=")
		line("export %s=%s", name, quote(value))
	}
	line("child=")
	line("stop=")
	line(`trap 'stop=1; [ -z "$child" ] || kill -TERM "$child"' TERM INT`)
	line("%s -m ctrloop_trainer.job spec-%d.json --out %s >>%s 2>&1 &", quote(r.Python), run, quote(out), logFile)
	line("child=$!")
	line(`[ -z "$stop" ] || kill -TERM "$child"`)
	line(`wait "$child"; status=$?`)
	line("# A signal ends the wait before the child.")
	line(`while kill -0 "$child" 2>/dev/null; do wait "$child"; status=$?; done`)
	line("[ $status -eq 0 ] || tail -n 20 %s", logFile)
	line("echo $status >exit-%d.new && mv exit-%d.new exit-%d", run, run, run)
	line("exit $status")
	return b.String()
}

// quote makes a word of a shell of any text.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
