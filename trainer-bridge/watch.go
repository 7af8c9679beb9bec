package trainerbridge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"ctrloop/trainer-bridge/runner"
)

// watch follows one run on a cluster.
type watch struct {
	r     *Remote
	f     runFiles
	task  runner.Task
	curve *progress

	submitted bool
	// since when the cluster has not known the run, or known it as ended, without a note of the run; zero: it has not.
	missing time.Time
	// stopping is why the run was asked to end, and when; nil: it was not.
	stopping *JobError
	stopped  time.Time
}

// run submits and looks until the run has ended, or ctx has.
func (w *watch) run(ctx context.Context) (string, error) {
	look := time.NewTimer(0)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-look.C:
		}
		done, err := w.look(ctx)
		if done && err == nil {
			return outFolder(w.f.dir, w.f.run), nil
		}
		if done {
			return "", err
		}
		look.Reset(w.r.Interval)
	}
}

// look does one round: the run's own note first, then the cluster's word, then the limits.
func (w *watch) look(ctx context.Context) (done bool, err error) {
	status, noted, err := w.f.exit()
	switch {
	case err != nil && noted:
		return true, &JobError{FailIncomplete, err}
	case err != nil:
		w.complain(err)
		return false, nil
	case noted:
		if classOf(status) == FailInterrupted { // by a cluster that may start it again: its claim is taken, but so is a place
			_ = w.r.Cluster.Stop(ctx, w.task.Name)
		}
		return true, w.ended(status)
	}
	if w.f.cancelled() && w.stopping == nil {
		w.stop(ctx, &JobError{FailCancelled, errCancelled})
	}
	if w.stopping == nil && w.f.neverBegins() {
		return true, &JobError{FailUnstarted, errors.New("was called off before it began, by a bridge that has ended since")}
	}
	if !w.submitted && w.stopping == nil {
		return w.submit(ctx)
	}
	st, err := w.r.Cluster.Look(ctx, w.task.Name)
	if ctx.Err() != nil {
		return false, nil
	}
	now := time.Now()
	switch {
	case errors.Is(err, runner.ErrUnknown):
		return w.ending(now, FailLost, "the cluster does not know the run (any more)")
	case err != nil:
		w.complain(err)
		return w.unreachable(now, err)
	}
	w.r.lastComplaint = ""
	switch st.State {
	case runner.Waiting:
		w.missing = time.Time{}
		return w.waiting(ctx, now, st)
	case runner.Running:
		w.missing = time.Time{}
		return w.running(ctx, now)
	case runner.Succeeded, runner.Failed:
	}
	if st.Exit == runner.ExitTaken && !w.f.neverBegins() { // another copy has the run: it is followed by what it writes
		w.missing = time.Time{}
		return w.running(ctx, now)
	}
	class, what := w.verdict(st)
	return w.ending(now, class, what)
}

// submit hands the run to the cluster, which may have it already.
func (w *watch) submit(ctx context.Context) (done bool, err error) {
	err = w.r.Cluster.Submit(ctx, w.task)
	switch {
	case errors.Is(err, runner.ErrRefused):
		return true, &JobError{FailRefused, err}
	case err != nil && ctx.Err() == nil:
		w.complain(err)
	case err == nil:
		w.submitted = true
		w.r.Log.Info().Str("task", w.task.Name).Msg("the cluster has the run")
	}
	return false, nil
}

// ended judges a run by the note that it left.
func (w *watch) ended(status int) error {
	if status == 0 {
		return nil
	}
	if w.stopping != nil {
		return w.stopping
	}
	if w.f.cancelled() {
		return &JobError{FailCancelled, errCancelled}
	}
	return w.failed(status, "")
}

// failed is the error of a run that ended with a status of its own.
func (w *watch) failed(status int, reason string) *JobError {
	tail := w.f.tail()
	err := fmt.Errorf("exit status %d on the cluster", status)
	class := classOf(status)
	switch {
	case status == 126 || status == 127:
		class, err = FailInput, fmt.Errorf("%s cannot be run on the cluster (trainer.cluster.python)", w.r.Python)
	case status == exitNoFolder:
		class, err = FailInput, fmt.Errorf("%s is not there on the cluster's machine: is it shared (trainer.cluster.paths)?", w.task.Dir)
	case class == FailMemory && status != 3:
		err = errors.New("was killed (SIGKILL), most often for lack of memory")
	}
	if reason != "" {
		err = fmt.Errorf("%w (%s)", err, reason)
	}
	if tail != "" {
		err = fmt.Errorf("%w; its last words: %s", err, tail)
	}
	return failure(class, err, tail, w.f.dir)
}

// verdict is what a cluster's word for the end of a run comes to, where the run left no note.
func (w *watch) verdict(st runner.Status) (FailureClass, string) {
	says := "the cluster says: " + st.Reason
	if st.State == runner.Succeeded {
		return FailIncomplete, fmt.Sprintf("ended well on the cluster and left no %s: is %s there the folder %s here (trainer.cluster.paths)?",
			filepath.Base(w.f.path("exit-%d")), w.task.Dir, w.f.dir)
	}
	switch st.Cause {
	case runner.Memory:
		return FailMemory, "was killed for lack of memory (trainer.resources.memory_bytes); " + says
	case runner.Stopped:
		return FailCancelled, "was stopped on the cluster; " + says
	case runner.Preempted:
		return FailInterrupted, "lost its place on the cluster; " + says
	case runner.Lost:
		return FailLost, says
	case runner.Deadline:
		return FailTimeout, "ran into the cluster's time limit; " + says
	case runner.Unstarted:
		return FailUnstarted, says
	case runner.ByItself:
	}
	if st.Exit == 0 {
		return FailBug, says
	}
	je := w.failed(st.Exit, st.Reason)
	return je.Class, je.Err.Error()
}

// ending gives a run without a note the time that one may take to appear here: shares cache what is not there.
func (w *watch) ending(now time.Time, class FailureClass, what string) (done bool, err error) {
	if w.stopping != nil && w.f.neverBegins() {
		return true, w.stopping
	}
	if w.missing.IsZero() {
		w.missing = now
	}
	if now.Sub(w.missing) < w.r.LostAfter {
		return false, nil
	}
	if class == FailLost {
		w.abandon()
	}
	if w.stopping != nil {
		return true, w.stopping
	}
	return true, &JobError{class, errors.New(what)}
}

// abandon gives up a run whose end nobody saw. If it has begun it may still be writing: the next run takes another folder.
func (w *watch) abandon() {
	never, err := w.f.callOff()
	if err == nil && !never {
		err = w.f.lost()
	}
	if err != nil {
		w.complain(err)
	}
}

// waiting is a look at a run that has not started.
func (w *watch) waiting(ctx context.Context, now time.Time, st runner.Status) (done bool, err error) {
	w.curve.since = now
	if w.stopping != nil { // some clusters let it wait on: it will find that it was called off
		if w.f.neverBegins() {
			return true, w.stopping
		}
		return w.overdue(now)
	}
	since := now
	if info, err := os.Stat(w.f.path("run-%d.sh")); err == nil {
		since = info.ModTime()
	}
	if now.Sub(since) < w.r.StartTimeout {
		return false, nil
	}
	w.stop(ctx, &JobError{FailUnstarted, fmt.Errorf("waited %v for resources (trainer.cluster.start_timeout); the cluster says: %s",
		w.r.StartTimeout, st.Reason)})
	return false, nil
}

// running is a look at a run that has started.
func (w *watch) running(ctx context.Context, now time.Time) (done bool, err error) {
	if w.stopping != nil {
		return w.overdue(now)
	}
	if w.stalled(now) {
		w.stop(ctx, &JobError{FailTimeout, fmt.Errorf("stopped after %v without progress (trainer.timeout)", w.r.Timeout)})
	}
	return false, nil
}

func (w *watch) stalled(now time.Time) bool {
	return w.curve.stalled(now, sizes([]string{filepath.Join(w.f.dir, logFile), filepath.Join(outFolder(w.f.dir, w.f.run), curveFile)}))
}

// unreachable is a look that got no answer. The run goes on, and is followed by what it writes.
func (w *watch) unreachable(now time.Time, cause error) (done bool, err error) {
	if w.stopping != nil {
		return w.overdue(now)
	}
	if !w.stalled(now) {
		return false, nil
	}
	w.abandon()
	err = fmt.Errorf("no progress for %v (trainer.timeout), and the cluster does not answer: %w", w.r.Timeout, cause)
	return true, &JobError{FailLost, err}
}

// stop asks for the run's end, for a reason that the job fails with.
func (w *watch) stop(ctx context.Context, why *JobError) {
	w.stopping, w.stopped = why, time.Now()
	if _, err := w.f.callOff(); err != nil {
		w.complain(err)
	}
	if err := w.r.Cluster.Stop(ctx, w.task.Name); err != nil {
		w.complain(err)
	}
}

// overdue gives up a run that was asked to end and has not: twice the grace, and what a missing note is given.
func (w *watch) overdue(now time.Time) (bool, error) {
	if now.Sub(w.stopped) < 2*w.r.StopGrace+w.r.LostAfter {
		return false, nil
	}
	w.abandon()
	return true, w.stopping
}

// complain logs what stands in the way, once in a row.
func (w *watch) complain(err error) {
	if w.r.CallFailed != nil {
		w.r.CallFailed(err)
	}
	if text := err.Error(); text != w.r.lastComplaint {
		w.r.lastComplaint = text
		w.r.Log.Warn().Err(err).Str("task", w.task.Name).Msg("cannot ask the cluster; trying again")
	}
}
