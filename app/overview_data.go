package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"ctrloop/ingest"
	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
	"ctrloop/internal/warehouse/query"
	"ctrloop/joiner/sink"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving/console"
	"ctrloop/serving/experiment/ramp"
	"ctrloop/serving/rollout"
)

// This file reads what the overview cannot take from memory. Each part has a pace of its own, and rests
// for a multiple of the time that it took: however large the warehouse, watching the page costs a bounded share of
// one core. Queries run in one thread, since the machine may be training beside them.

const (
	minPace = 5 * time.Second
	// restPerScan bounds scans of all labels to 1/20 of one core, restPerAudit the dearer audit to 1/100.
	restPerScan, restPerAudit = 20, 100
	auditPace                 = time.Minute
	loadTimeout               = 20 * time.Second
	// tooOld to be shown for a moment without a warning.
	tooOld    = 30 * time.Second
	oneThread = " SETTINGS max_threads = 1"
)

// refreshed is a value that is loaded in the background when somebody asks for it and it is old.
type refreshed[T any] struct {
	mu    sync.Mutex
	key   string // of what was loaded; another key is loaded at once
	value T
	err   error         // of the last load; value is then that of an earlier one
	good  time.Time     // start of the last load that went well
	span  time.Duration // that its value is meant to be shown for
	next  time.Time
	done  chan struct{} // of the load in progress
}

// get returns the value as it is, and starts a load when it is due: pace after the last one, or rest times as
// long as that one took. The first load, and the first after nobody has looked for a while, is waited for while ctx
// allows.
func (r *refreshed[T]) get(
	ctx context.Context,
	key string,
	pace time.Duration,
	rest int,
	load func(context.Context) (T, error),
) (T, error) {
	r.mu.Lock()
	now := time.Now()
	if r.done == nil && (key != r.key || !now.Before(r.next)) {
		r.done = make(chan struct{})
		go r.load(key, pace, rest, load)
	}
	done, old := r.done, now.Sub(r.next) > tooOld
	r.mu.Unlock()
	if old && done != nil {
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.value, r.err
}

func (r *refreshed[T]) load(key string, pace time.Duration, rest int, load func(context.Context) (T, error)) {
	// Not the context of who looks: the result is for the next one too.
	ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
	defer cancel()
	start := time.Now()
	v, err := load(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	took := time.Since(start)
	if r.err = err; err == nil {
		r.value, r.good, r.span = v, start, took+max(pace, time.Duration(rest)*took)
	}
	r.key, r.next = key, start.Add(took+max(pace, time.Duration(rest)*took))
	close(r.done)
	r.done = nil
}

// stale says how old the value is, where that is older than it is meant to be shown.
func (r *refreshed[T]) stale(now time.Time, part string) []console.Stale {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.good.IsZero() && r.err == nil { // not asked for yet, or the first load is under way
		return nil
	}
	age := now.Sub(r.good)
	if !r.good.IsZero() && age <= r.span+tooOld {
		return nil
	}
	s := console.Stale{Part: part, AgeSeconds: age.Seconds()}
	if r.good.IsZero() {
		s.AgeSeconds = 0
	}
	if r.err != nil {
		s.Why = clip(r.err.Error())
	}
	return []console.Stale{s}
}

// stale lists the parts of the page whose figures are old.
func (o *overview) stale(now time.Time) []console.Stale {
	out := slices.Concat(
		o.traffic.stale(now, "rates and creatives"), o.history.stale(now, "control log"), o.verdict.stale(now, "rollout"),
		o.backlog.stale(now, "what waits"), o.audit.stale(now, "audit"),
	)
	slices.SortStableFunc(out, func(a, b console.Stale) int { return cmp.Compare(b.AgeSeconds, a.AgeSeconds) })
	return out
}

// whole leaves out the last point of a series while its stretch of time is not mature as a whole: a part of it looks like
// an outage.
func whole(series []console.CTRPoint, horizonMS int64) []console.CTRPoint {
	n := len(series)
	if n < 3 {
		return series
	}
	width := series[n-1].Time.Sub(series[n-2].Time)
	for i := 1; i < n; i++ {
		width = min(width, series[i].Time.Sub(series[i-1].Time))
	}
	if series[n-1].Time.Add(width).UnixMilli() > horizonMS {
		return series[:n-1]
	}
	return series
}

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

func (o *overview) background(ctx context.Context, st *control.State, up map[Target]bool) background {
	ctx, cancel := context.WithTimeout(ctx, firstWait)
	defer cancel()
	a := o.app
	var bg background
	var errs [3]error
	bg.latest, _ = o.latest.get(ctx, "", minPace, 0, func(context.Context) ([]schemas.Creative, error) {
		return newestCreatives(a.ads.All(), 24), nil
	})
	bg.backlog, bg.backlogErr = o.backlog.get(
		ctx,
		"",
		minPace,
		restPerScan,
		func(ctx context.Context) (backlog, error) { return a.readBacklog(ctx, up) },
	)
	if a.db == nil {
		return bg
	}
	// The state goes with the load: the key is what makes another one of it. The mirror of the log is behind it
	// by a flush, hence the pace as well.
	bg.history, errs[0] = o.history.get(
		ctx,
		"",
		minPace,
		restPerScan,
		func(ctx context.Context) (history, error) { return a.readHistory(ctx, st) },
	)
	bg.traffic, errs[1] = o.traffic.get(
		ctx,
		st.Routes[rollout.Logical].Champion,
		minPace,
		restPerScan,
		func(ctx context.Context) (traffic, error) { return a.readTraffic(ctx, st) },
	)
	if x := latestExperiment(st); x != nil {
		key := fmt.Sprintf("%s %d %v", x.ID, x.Step.Index, x.Running())
		bg.verdict, bg.verdictErr = o.verdict.get(ctx, key, minPace, restPerScan, func(ctx context.Context) (verdict, error) {
			v, err := a.serving.experiment.Analyse(ctx, *x)
			return verdict{*x, v}, err
		})
		if bg.verdict.x.ID != x.ID {
			bg.verdict = unknown(*x)
		}
		bg.verdict.x = *x
		errs[2] = bg.verdictErr
	}
	if horizon := bg.traffic.horizonMS; horizon > 0 && up[Sink] {
		// Nobody waits for the audit: a context that has ended.
		gone, cancel := context.WithCancel(ctx)
		cancel()
		bg.audit, _ = o.audit.get(gone, "", auditPace, restPerAudit, func(ctx context.Context) (int64, error) {
			n, err := a.readAudit(ctx, horizon)
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
func (o *overview) audited(n int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n == 0 {
		o.badRuns = 0
		return
	}
	o.badRuns++
}

// traffic is what a scan of the mature labels says.
type traffic struct {
	newestMS, horizonMS int64 // event time; 0: no labels
	series              []console.CTRPoint
	byCreative          map[string]counts
	champion            string // whose figures these are:
	championImpressions int64
	championClicks      int64
}

type counts struct{ impressions, clicks int64 }

// widths of the buckets of the series.
var widths = []time.Duration{
	time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 15 * time.Second, 30 * time.Second,
	time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour,
}

// maxPoints of the series: fewer than the page takes, for each to hold enough clicks.
const maxPoints = 120

// bucket is the smallest width that covers a span of event time with at most maxPoints buckets, which begin at
// multiples of the width. Milliseconds.
func bucket(fromMS, toMS int64) int64 {
	for _, w := range widths {
		if ms := w.Milliseconds(); toMS/ms-fromMS/ms < maxPoints {
			return ms
		}
	}
	day := widths[len(widths)-1].Milliseconds()
	return ((toMS-fromMS)/(day*(maxPoints-1)) + 1) * day
}

// readTraffic makes one scan for the series, the creatives and the champion. The ends of the span come from the
// parts' indexes and two small columns.
func (a *App) readTraffic(ctx context.Context, st *control.State) (traffic, error) {
	t := traffic{byCreative: map[string]counts{}}
	var from int64
	err := a.db.QueryRow(
		ctx,
		query.Text("span")+oneThread,
	).
		Scan(
			&from,
			&t.newestMS,
			&t.horizonMS,
		)
	if err != nil || t.newestMS == 0 {
		return t, err
	}
	route := st.Routes[rollout.Logical]
	t.champion = route.Champion
	since, err := a.eventTimeAt(ctx, route.Since)
	if err != nil || t.horizonMS < from {
		return t, err
	}
	width := bucket(from, t.horizonMS)
	var rows []struct {
		Creative string `ch:"ad"`
		Slot     int64  `ch:"slot"`
		IsSlot   uint8  `ch:"is_slot"`
		N        uint64 `ch:"n"`
		K        uint64 `ch:"k"`
		LiveN    uint64 `ch:"live_n"`
		LiveK    uint64 `ch:"live_k"`
	}
	err = a.db.Select(ctx, &rows, query.Text("traffic")+oneThread, width, route.Champion, since)
	if err != nil {
		return t, err
	}
	for _, r := range rows {
		if r.IsSlot == 0 {
			t.byCreative[r.Creative] = counts{int64(r.N), int64(r.K)}
			continue
		}
		t.series = append(t.series, console.CTRPoint{Time: time.UnixMilli(r.Slot * width).UTC(), Impressions: int64(r.N), Clicks: int64(r.K)})
		t.championImpressions += int64(r.LiveN)
		t.championClicks += int64(r.LiveK)
	}
	return t, nil
}

// eventTimeAt is the event time of the traffic at a time of the wall: the newest label that was there. 0: none was.
func (a *App) eventTimeAt(ctx context.Context, wall time.Time) (int64, error) {
	if wall.IsZero() {
		return 0, nil
	}
	if !a.eventClock() {
		return wall.UnixMilli(), nil
	}
	var ms int64
	err := a.db.QueryRow(
		ctx,
		query.Text("event_time_at")+oneThread,
		wall.Unix(),
	).Scan(
		&ms,
	)
	return ms, err
}

// history is what has happened, by the mirror of the control log.
type history struct {
	events  []console.Event
	marks   []console.Mark
	decided map[string]string // why experiments ended, by entity
	pairs   int64             // made since the data began
}

// maxMarks on the chart: the newest.
const maxMarks = 40

// command is a row of the log's mirror.
type command struct {
	Type    string    `ch:"type"`
	Entity  string    `ch:"entity"`
	Actor   string    `ch:"actor"`
	Note    string    `ch:"note"`
	Time    time.Time `ch:"time"`
	Version string    `ch:"version"` // that became champion
	Outcome string    `ch:"outcome"` // of a decision
}

func (a *App) readHistory(ctx context.Context, st *control.State) (history, error) {
	h := history{decided: map[string]string{}}
	var last, turns []command
	if err := a.db.Select(ctx, &last, query.Text("commands")+oneThread); err != nil {
		return h, err
	}
	for _, r := range last {
		h.events = append(h.events, console.Event{Time: r.Time, Type: r.Type, Entity: r.Entity, Actor: r.Actor, Note: r.Note})
	}
	if err := a.db.Select(ctx, &turns, query.Text("turns")+oneThread); err != nil {
		return h, err
	}
	marks := stepMarks(st)
	for _, r := range turns {
		if control.Type(r.Type) == control.ExperimentDecided {
			h.decided[r.Entity] = r.Note
			if r.Version == "" {
				continue
			}
			r.Type = map[bool]string{true: "promoted", false: "rolled_back"}[r.Outcome == string(control.Promote)]
		}
		marks = append(marks, undated{strings.TrimPrefix(r.Type, "model."), r.Version, r.Time, 0})
	}
	var err error
	if h.marks, err = a.date(ctx, marks); err != nil {
		return h, err
	}
	var pairs uint64
	err = a.db.QueryRow(ctx, query.Text("pairs")+oneThread).Scan(&pairs)
	h.pairs = int64(pairs)
	return h, err
}

// date finds the event times of marks, and gives the newest marks in their order. What was before the first event
// is left out: the chart does not go there.
func (a *App) date(ctx context.Context, marks []undated) ([]console.Mark, error) {
	var out []console.Mark
	for _, m := range marks {
		ms, err := m.atMS, error(nil)
		if ms == 0 {
			ms, err = a.eventTimeAt(ctx, m.wall)
		}
		if err != nil {
			return nil, err
		}
		if ms > 0 {
			out = append(out, m.mark(ms))
		}
	}
	slices.SortStableFunc(out, func(a, b console.Mark) int { return a.Time.Compare(b.Time) })
	return out[max(0, len(out)-maxMarks):], nil
}

// undated is a mark whose event time may have to be looked up.
type undated struct {
	kind, what string
	wall       time.Time
	atMS       int64 // event time, 0: by wall
}

func (u undated) mark(ms int64) console.Mark {
	m := console.Mark{Time: time.UnixMilli(ms).UTC(), Kind: u.kind, Label: u.what}
	switch u.kind {
	case "promoted":
		m.Label = short(u.what) + " promoted"
	case "rolled_back":
		m.Label = "back to " + short(u.what)
	}
	return m
}

// stepMarks are the steps of all experiments. Only the first one does not know its event time.
func stepMarks(st *control.State) (out []undated) {
	for _, x := range st.Experiments {
		for i, s := range x.History {
			u := undated{"step", fmt.Sprintf("%g %%", math.Round(1000*s.Share)/10), x.Created, s.AtMS}
			if i == 0 {
				u.what = short(x.Treatment) + " at " + u.what
			}
			out = append(out, u)
		}
	}
	return out
}

// short is a version's digest as people say it: "prompt-71d0c3b9a44e" -> "71d0c3b9".
func short(version string) string {
	name := version[strings.LastIndexByte(version, '-')+1:]
	return name[:min(len(name), 8)]
}

// verdict is a look at an experiment.
type verdict struct {
	x control.ExperimentStatus
	v ramp.Verdict
}

// unknown is the verdict before the first look: no figure is known.
func unknown(x control.ExperimentStatus) verdict {
	nan := ramp.Num(math.NaN())
	arm := ramp.Arm{CTR: nan, Low: nan, High: nan}
	return verdict{x, ramp.Verdict{Action: ramp.Hold, Rule: ramp.MinSamples, Why: "not looked at yet", Figures: ramp.Figures{
		Step: x.Step, Control: arm, Treatment: arm, Lift: nan, LiftLow: nan, LiftHigh: nan, Relative: nan, RelativeLow: nan, RelativeHigh: nan,
		P: nan, Guard: nan, GuardLow: nan, SRMP: nan, MDE: nan, ErrorP: nan,
	}}}
}

func (o *overview) rollout(bg background) *console.Rollout {
	if bg.verdict.x.ID == "" {
		return nil
	}
	r := console.NewRollout(bg.verdict.x, bg.verdict.v, o.app.cfg.Experiment.Ramp.Margin)
	switch {
	case !r.Running: // the reason of the decision, not of a look after it
		r.Why = bg.history.decided[control.ExperimentEntity(r.ID)]
	case bg.verdictErr != nil: // the figures are those of an older look
		r.Stale, r.Why = true, clip(fmt.Sprintf("NOT PRESENT, the figures are of an older look: %v", bg.verdictErr))
	}
	return &r
}

// backlog is what waits in the topics, records.
type backlog struct{ raw, sink int64 }

func (a *App) readBacklog(ctx context.Context, up map[Target]bool) (b backlog, err error) {
	if up[Ingest] {
		if b.raw, err = stream.Lag(ctx, a.kafka, ingest.Group, schemas.TopicRawImpressions, schemas.TopicRawClicks); err != nil {
			return b, err
		}
	}
	if up[Sink] {
		b.sink, err = a.sink.Lag(ctx)
	}
	return b, err
}

// auditPatience is how long an audit that sees a difference waits for rows that are on their way.
const auditPatience = 5 * time.Second

// readAudit counts the minutes in which the labels here are not those that the joiner says it made, by the rule of the sink's audit and
// of `ctrloop audit`: what is on its way from the topics explains a difference. Younger minutes than the horizon's are still being filled.
func (a *App) readAudit(ctx context.Context, horizonMS int64) (int64, error) {
	before := horizonMS/1000 - 60
	if n, err := a.Count(ctx, query.Text("audit_before")+oneThread, before); err != nil || n == 0 {
		return 0, err
	}
	conf := a.cfg.Sink
	conf.Kafka = a.kafka
	differ, left, err := sink.AuditOnce(ctx, a.db, func() (*sink.Way, error) { return sink.NewWay(conf), nil }, time.Time{}, auditPatience)
	if err != nil {
		return 0, err
	}
	return differing(differ, left, before)
}

// differing counts what differs before a time, Unix seconds. While rows are on their way nobody can tell.
func differing(differ []warehouse.Mismatch, left sink.Left, before int64) (n int64, err error) {
	for _, m := range differ {
		if m.Minute.Unix() < before {
			n++
		}
	}
	if n > 0 && left.Rows() > 0 {
		return 0, fmt.Errorf("%d minutes differ, and %d rows are on their way into the warehouse: nobody can tell yet", n, left.Rows())
	}
	return n, nil
}
