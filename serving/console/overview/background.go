package overview

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving/rollout"
)

// What cannot be taken from memory comes from the background. Each part of it has a pace of its own, and rests for a multiple of
// the time that it took: however large the warehouse, watching the page costs a bounded share of one core. Queries run in
// one thread, since the machine may be training beside them.
const (
	minPace = 5 * time.Second
	// restPerScan bounds scans of all labels to 1/20 of one core, restPerAudit the dearer audit to 1/100.
	restPerScan, restPerAudit = 20, 100
	auditPace                 = time.Minute
	oneThread                 = " SETTINGS max_threads = 1"
)

// firstWait is how long the first look at the page waits for what comes from the background.
const firstWait = 2 * time.Second

// background is what comes from there, as of now.
type background struct {
	latest       []schemas.Creative
	history      history
	traffic      traffic
	verdict      verdict
	verdictErr   error
	backlog      backlog
	backlogErr   error
	audit        int64
	warehouseErr error
}

func (o *Page) background(ctx context.Context, st *control.State) background {
	ctx, cancel := context.WithTimeout(ctx, firstWait)
	defer cancel()
	var bg background
	var errs [3]error
	bg.latest, _ = o.latest.get(ctx, "", minPace, 0, func(context.Context) ([]schemas.Creative, error) {
		return newestCreatives(o.p.Creatives(), 24), nil
	})
	bg.backlog, bg.backlogErr = o.backlog.get(ctx, "", minPace, restPerScan, o.readBacklog)
	if o.p.Warehouse == nil {
		return bg
	}
	// The state goes with the load: the key is what makes another one of it. The mirror of the log is behind it
	// by a flush, hence the pace as well.
	bg.history, errs[0] = o.history.get(ctx, "", minPace, restPerScan, func(ctx context.Context) (history, error) {
		return o.readHistory(ctx, st)
	})
	champion := st.Routes[rollout.Logical].Champion
	bg.traffic, errs[1] = o.traffic.get(ctx, champion, minPace, restPerScan, func(ctx context.Context) (traffic, error) {
		return o.readTraffic(ctx, st)
	})
	if x := latestExperiment(st); x != nil && o.p.Experiments != nil {
		key := fmt.Sprintf("%s %d %v", x.ID, x.Step.Index, x.Running())
		bg.verdict, bg.verdictErr = o.verdict.get(ctx, key, minPace, restPerScan, func(ctx context.Context) (verdict, error) {
			v, err := o.p.Experiments.Analyse(ctx, *x)
			return verdict{*x, v}, err
		})
		if bg.verdict.x.ID != x.ID {
			bg.verdict = unknown(*x)
		}
		bg.verdict.x = *x
		errs[2] = bg.verdictErr
	}
	if horizon := bg.traffic.horizonMS; horizon > 0 && o.up(Sink) {
		// Nobody waits for the audit: a context that has ended.
		gone, cancel := context.WithCancel(ctx)
		cancel()
		bg.audit, _ = o.audit.get(gone, "", auditPace, restPerAudit, func(ctx context.Context) (int64, error) {
			// Younger minutes than the horizon's are still being filled.
			n, err := o.p.Audit(ctx, horizon/1000-60)
			if err == nil {
				o.audited(n)
			}
			return n, err
		})
	}
	bg.warehouseErr = errors.Join(errs[:]...)
	return bg
}

// audited counts the audits in a row that found a difference: labels and their audit travel separately, so that
// one alone may be a matter of a second.
func (o *Page) audited(n int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n == 0 {
		o.badRuns = 0
		return
	}
	o.badRuns++
}

// backlog is what waits in the topics, records.
type backlog struct{ raw, sink int64 }

func (o *Page) readBacklog(ctx context.Context) (b backlog, err error) {
	if o.up(Ingest) {
		if b.raw, err = o.p.RawLag(ctx); err != nil {
			return b, err
		}
	}
	if o.up(Sink) {
		b.sink, err = o.p.SinkLag(ctx)
	}
	return b, err
}
