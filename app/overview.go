package app

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ctrloop/ingest"
	"ctrloop/joiner"
	"ctrloop/joiner/window"
	"ctrloop/pairer"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving"
	"ctrloop/serving/console"
	"ctrloop/serving/rollout"
)

// overview fills the console's first page. It works only while somebody looks: what is in memory is read at
// each call, what has to be asked for (warehouse, broker) comes from the background, see refreshed. A part that
// cannot be read leaves its place empty and says so in a stage or an alert; the page itself never fails.
type overview struct {
	app *App

	mu      sync.Mutex
	samples []sample             // of the counters, for rates, oldest first
	firing  map[string]time.Time // alerts, since when this process sees them
	curves  map[string]int64     // lines of the training curves of ended jobs
	badRuns int                  // audits in a row that found a difference

	answered bool // a model server has answered since the start

	latest  refreshed[[]schemas.Creative]
	history refreshed[history]
	traffic refreshed[traffic]
	verdict refreshed[verdict]
	backlog refreshed[backlog]
	audit   refreshed[int64]
}

// slowStart is how long a model server may take to its first answer before somebody should look.
const slowStart = 5 * time.Minute

// firstWait is how long the first look at the page waits for what comes from the background.
const firstWait = 2 * time.Second

// Overview implements console.Source.
func (o *overview) Overview(ctx context.Context) (console.Overview, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	a, now := o.app, time.Now()
	st := a.control.State()
	up := a.up()
	bg := o.background(ctx, st, up)

	ledger := joiner.Ledger{Balanced: true}
	if a.joiner != nil {
		ledger = a.joiner.Ledger()
	}
	newest := max(newestEvent(ledger), bg.traffic.newestMS)
	c := o.count(ledger, bg)
	if up[Trainer] {
		c.n[steps] = float64(o.steps(st))
	}
	o.samples = addSample(o.samples, sample{now, c.n})
	c.samples = o.samples

	out := console.Overview{
		Time: now, EventTime: eventTime(newest), Instance: a.instance(now), Ledger: ledgerOf(ledger.Total),
		Stages: []console.Stage{
			a.stage(console.Ingest, Ingest, up, func() console.Stage { return o.ingestStage(c, bg) }),
			a.stage(console.Join, Joiner, up, func() console.Stage { return o.joinStage(c, ledger, newest, bg) }),
			a.stage(console.Pair, Pairer, up, func() console.Stage { return pairStage(a.pairer.Status(), a.cfg.Pairer.Interval, c, newest, now) }),
			a.stage(console.Train, Trainer, up, func() console.Stage { return o.trainStage(c, st, now) }),
			a.stage(console.Serve, Serving, up, func() console.Stage { return o.serveStage(c) }),
		},
		Freshness: freshness(st, newest), Champion: champion(st, bg.traffic), Rollout: o.rollout(bg),
		CTR:   whole(bg.traffic.series, bg.traffic.horizonMS),
		Marks: bg.history.marks, Creatives: o.creatives(st, bg), Events: bg.history.events,
	}
	out.Alerts = o.since(now, o.alerts(st, ledger, bg))
	out.Stale = o.stale(now)
	return out, nil
}

func (a *App) instance(now time.Time) console.Instance {
	in := console.Instance{Name: a.opt.Dir, Version: a.opt.Version, Mode: "embedded", UptimeSeconds: now.Sub(a.started).Seconds()}
	if len(a.cfg.Kafka.Brokers) > 0 || a.cfg.ClickHouse.DSN != "" {
		in.Mode = "production"
		in.Name = cmp.Or(a.cfg.ClickHouse.Cluster, in.Name)
	}
	return in
}

// eventTime is nil for 0: not known.
func eventTime(ms int64) *time.Time {
	if ms <= 0 {
		return nil
	}
	t := time.UnixMilli(ms).UTC()
	return &t
}

func newestEvent(l joiner.Ledger) int64 {
	var ms int64
	for _, p := range l.Partitions {
		ms = max(ms, p.MaxImpressionMS, p.MaxClickMS)
	}
	return ms
}

func ledgerOf(l window.Ledger) console.Ledger {
	return console.Ledger{
		Received: int64(l.ImpressionsIn), Positive: int64(l.Positive), Negative: int64(l.FinalNegative), Open: int64(l.Open),
		Duplicate: int64(l.Duplicate), Late: int64(l.LateImpressions),
	}
}

// Counters of the services that have no accessor, as /metrics shows them.
const (
	metricRouted    = "ctrloop_ingest_routed_events_total"
	metricRead      = "ctrloop_ingest_read_records_total"
	metricDropped   = "ctrloop_ingest_dropped_records_total"
	metricRejected  = "ctrloop_edge_rejected_events_total"
	metricDecisions = "ctrloop_decide_decisions_total"
)

// counters reads the named counters: name -> value of the label -> count. Each has one label.
func counters(g prometheus.Gatherer, names ...string) map[string]map[string]float64 {
	out := map[string]map[string]float64{}
	families, _ := g.Gather() // what could be collected comes with the error
	for _, f := range families {
		if !slices.Contains(names, f.GetName()) {
			continue
		}
		of := map[string]float64{}
		for _, m := range f.GetMetric() {
			label := ""
			if ls := m.GetLabel(); len(ls) > 0 {
				label = ls[0].GetValue()
			}
			of[label] += m.GetCounter().GetValue()
		}
		out[f.GetName()] = of
	}
	return out
}

func sum(of map[string]float64) (n float64) {
	for _, v := range of {
		n += v
	}
	return n
}

// stream names what a sample counts.
type streamName string

const (
	impressions streamName = "impressions"
	rawRecords  streamName = "raw records"
	labels      streamName = "labels"
	pairsMade   streamName = "pairs"
	steps       streamName = "steps"
	decisions   streamName = "decisions"
)

// sample is one reading of the counters.
type sample struct {
	at time.Time
	n  map[streamName]float64
}

// rateSpan is over how long rates are averaged: longer than any commit interval, short enough to follow.
const rateSpan = 10 * time.Second

// addSample appends a reading and drops those that are too old for a rate.
func addSample(old []sample, s sample) []sample {
	old = slices.DeleteFunc(old, func(o sample) bool { return s.at.Sub(o.at) > rateSpan })
	return append(old, s)
}

// rate per second over the samples; nil while there are not two, or when a counter began anew.
func rate(samples []sample, of streamName) *float64 {
	if len(samples) < 2 {
		return nil
	}
	first, last := samples[0], samples[len(samples)-1]
	seconds, n := last.at.Sub(first.at).Seconds(), last.n[of]-first.n[of]
	if seconds <= 0 || n < 0 {
		return nil
	}
	r := n / seconds
	return &r
}

// counted is the present reading with its rates.
type counted struct {
	metrics map[string]map[string]float64
	n       map[streamName]float64
	samples []sample
}

func (c counted) rate(of streamName) *float64 { return rate(c.samples, of) }

// state of a stage by what it counts: with one reading alone nobody can say whether it is at work.
func (c counted) state(of streamName) console.StageState {
	r := c.rate(of)
	switch {
	case r == nil:
		return console.Starting
	case *r > 0:
		return console.Running
	}
	return console.Idle
}

func (o *overview) count(l joiner.Ledger, bg background) counted {
	m := counters(o.app.registry, metricRouted, metricRead, metricDropped, metricRejected, metricDecisions)
	n := map[streamName]float64{
		impressions: m[metricRouted]["impression"],
		rawRecords:  sum(m[metricRead]),
		labels:      float64(l.Total.Positive + l.Total.FinalNegative + l.Total.Corrected),
		pairsMade:   float64(bg.history.pairs),
		decisions:   sum(m[metricDecisions]) - m[metricDecisions]["error"],
	}
	return counted{metrics: m, n: n}
}

// steps counts the points of all training curves; a job writes one a step.
func (o *overview) steps(st *control.State) (total int64) {
	if o.curves == nil {
		o.curves = map[string]int64{}
	}
	for id, j := range st.Jobs {
		n, ok := o.curves[id]
		if !ok {
			b, _ := os.ReadFile(filepath.Join(o.app.runner.JobDir(id), "out", "metrics.jsonl")) // none before the job starts
			n = int64(bytes.Count(b, []byte("\n")))
			if j.State == control.JobSucceeded || j.State == control.JobBroken {
				o.curves[id] = n
			}
		}
		total += n
	}
	return total
}

// up says which services have started. The page is there before the last of them are: what they are built of
// may be looked at only when their gate is open.
func (a *App) up() map[Target]bool {
	up := map[Target]bool{}
	_, gates := a.ready.State()
	for _, g := range gates {
		up[Target(g.Name)] = g.Ready
	}
	return up
}

// stage is what of says, of a service that this process runs and that has started.
func (a *App) stage(name console.StageName, t Target, up map[Target]bool, of func() console.Stage) console.Stage {
	switch {
	case up[t]:
		return of()
	case a.runs(t):
		return console.Stage{Name: name, State: console.Starting, Detail: "starting"}
	}
	return console.Stage{Name: name, State: console.Stopped, Detail: "not in this process"}
}

// reasons lists what was dropped, most first: "bad_id 12, malformed 3".
func reasons(of map[string]float64) string {
	var names []string
	for name, n := range of {
		if n > 0 {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(of[b], of[a]), cmp.Compare(a, b)) })
	for i, name := range names {
		names[i] = fmt.Sprintf("%s %.0f", name, of[name])
	}
	return strings.Join(names, ", ")
}

func (o *overview) ingestStage(c counted, bg background) console.Stage {
	a := o.app
	s := console.Stage{
		Name: console.Ingest, State: c.state(impressions), Rate: c.rate(impressions), RateOf: "impressions",
		Dropped: int64(sum(c.metrics[metricDropped]) + sum(c.metrics[metricRejected])), Detail: "everything is read",
	}
	// The counter begins with the process, the join's ledger with the data; the counter is ahead by what is on
	// its way to the join.
	s.Total = int64(c.n[impressions])
	if a.joiner != nil {
		s.Total = max(s.Total, int64(a.joiner.Ledger().Total.ImpressionsIn))
	}
	s.LagSeconds, s.LagOf = drain(bg.backlog.raw, c.rate(rawRecords)), "to work off what the edge has taken, at this rate"
	switch {
	case bg.backlogErr != nil:
		s.State, s.Detail = console.Degraded, "the broker does not say what waits: "+bg.backlogErr.Error()
	case bg.backlog.raw > 0:
		s.Detail = fmt.Sprintf("%d raw records wait", bg.backlog.raw)
	}
	if s.Dropped > 0 {
		s.Detail += "; dropped: " + cmp.Or(reasons(c.metrics[metricDropped]), reasons(c.metrics[metricRejected]))
	}
	return s
}

// drain is how long n records take at a rate; nil when nothing moves though something waits.
func drain(n int64, rate *float64) *float64 {
	zero := 0.0
	switch {
	case n == 0:
		return &zero
	case rate == nil || *rate <= 0:
		return nil
	}
	s := float64(n) / *rate
	return &s
}

func (o *overview) joinStage(c counted, l joiner.Ledger, newest int64, bg background) console.Stage {
	a := o.app
	t := l.Total
	s := console.Stage{
		Name: console.Join, State: c.state(labels), Rate: c.rate(labels), RateOf: "labels", Total: int64(c.n[labels]),
		// A late click that corrected its negative took part after all.
		Dropped: int64(t.Duplicate+t.LateImpressions+t.Repeated+t.OrphanExpired+t.LateClicks) - int64(t.Corrected),
		Detail:  fmt.Sprintf("%d open in a window of %s", t.Open, brief(a.cfg.Joiner.Window)),
	}
	if low := lowWatermark(l); low > 0 && newest > 0 {
		lag := max(0, float64(newest-low)/1000)
		s.LagSeconds, s.LagOf = &lag, "watermark behind the newest event, event time"
	}
	if a.sink != nil && bg.backlog.sink > 0 {
		s.Detail += fmt.Sprintf("; %d records on their way to the warehouse", bg.backlog.sink)
	}
	if problem := ledgerProblem(l, int(a.cfg.Kafka.Partitions)); problem != "" {
		s.State, s.Detail = console.Degraded, problem
	}
	return s
}

// lowWatermark is the lowest of the partitions that have one: an input without events holds none up for long.
func lowWatermark(l joiner.Ledger) (low int64) {
	for _, p := range l.Partitions {
		if p.WatermarkMS > 0 && (low == 0 || p.WatermarkMS < low) {
			low = p.WatermarkMS
		}
	}
	return low
}

func ledgerProblem(l joiner.Ledger, partitions int) string {
	for _, p := range l.Partitions {
		if p.Problem != "" {
			return fmt.Sprintf("partition %d: %s", p.Partition, p.Problem)
		}
	}
	if len(l.Partitions) == 0 {
		return fmt.Sprintf("no partition yet of %d: being assigned or rebuilt", partitions)
	}
	return ""
}

func pairStage(p pairer.Status, interval time.Duration, c counted, newest int64, now time.Time) console.Stage {
	s := console.Stage{
		Name: console.Pair, State: console.Running, Rate: c.rate(pairsMade), RateOf: "pairs", Total: int64(c.n[pairsMade]),
		Detail: strings.TrimPrefix(p.Reason, "skip: "),
	}
	if p.At.IsZero() {
		s.State = console.Idle
		return s
	}
	// A look that does not ask for evidence says that the loop is busy elsewhere.
	if p.ToMS == 0 {
		s.State = console.Idle
	} else if newest > 0 {
		lag := max(0, float64(newest-p.ToMS)/1000)
		s.LagSeconds, s.LagOf = &lag, "evidence behind the newest event, event time"
	}
	if age := now.Sub(p.At); age > 3*interval+time.Minute {
		s.State, s.Detail = console.Degraded, fmt.Sprintf(
			"the last look was %s ago: see the log for what keeps it",
			brief(age.Round(time.Second)),
		)
	}
	return s
}

// curve is a point of a training curve in a few words: of what Progress says, the names that tell where a job is.
func curve(progress string) string {
	words := strings.Fields(progress)
	var out []string
	for _, name := range []string{"arm", "model", "epoch", "step", "loss", "validation"} {
		i := slices.Index(words, name)
		switch {
		case i < 0 || i+1 == len(words):
		case name == "arm" || name == "model":
			out = append(out, words[i+1])
		default:
			out = append(out, name+" "+words[i+1])
		}
	}
	return strings.Join(out, " ")
}

func (o *overview) trainStage(c counted, st *control.State, now time.Time) console.Stage {
	s := trainStage(st, now, o.app.runner.Progress)
	s.Rate, s.RateOf, s.Total = c.rate(steps), "steps", int64(c.n[steps])
	return s
}

func trainStage(st *control.State, now time.Time, progress func(job string) string) console.Stage {
	s := console.Stage{Name: console.Train, State: console.Idle, Detail: "no job yet"}
	var oldest, running, last *control.JobStatus
	for _, j := range st.Jobs {
		switch j.State {
		case control.JobRunning, control.JobQueued:
			if oldest == nil || j.Queued.Before(oldest.Queued) {
				oldest = j
			}
			if j.State == control.JobRunning {
				running = j
			}
		default:
			if last == nil || j.Finished.After(last.Finished) {
				last = j
			}
		}
	}
	if oldest != nil {
		lag := max(0, now.Sub(oldest.Queued).Seconds())
		s.LagSeconds, s.LagOf = &lag, "oldest job that has not ended, since it was submitted"
	}
	switch {
	case running != nil:
		s.State, s.Detail = console.Running, strings.TrimSpace(stageOf(running.ID)+" "+curve(progress(running.ID)))
	case oldest != nil:
		s.Detail = oldest.ID + " waits"
	case last != nil && last.State == control.JobBroken:
		s.State, s.Detail = console.Degraded, failure(last)
	case last != nil:
		s.Detail = fmt.Sprintf("last: %s, %s", stageOf(last.ID), brief(last.Finished.Sub(last.Started).Round(time.Second)))
		if m := modelOf(st, last.ID); m != nil && m.State == control.ModelFailed {
			s.Detail += "; " + m.Version + " failed: " + m.Reason
		}
	}
	return s
}

// stageOf a job in its cycle, by its name "<stage>-<digest>". It says more than the kind, which reward model and referee
// share.
func stageOf(job string) string {
	name, _, _ := strings.Cut(job, "-")
	return name
}

// failure of a job: which, its class, and why.
func failure(j *control.JobStatus) string {
	return fmt.Sprintf("%s failed (%s): %s", j.ID, j.Update.Class, strings.TrimPrefix(j.Update.Error, j.Update.Class+": "))
}

// clip keeps an alert to about two lines.
func clip(s string) string {
	const most = 200
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

// modelOf is the version that a job made.
func modelOf(st *control.State, job string) *control.ModelStatus {
	for _, m := range st.Models {
		if m.Job == job {
			return m
		}
	}
	return nil
}

func (o *overview) serveStage(c counted) console.Stage {
	a := o.app
	version, replicas := a.serving.service.Live(rollout.Logical)
	s := serveStage(version, replicas, a.serving.service.Stats())
	s.Rate, s.RateOf, s.Total = c.rate(decisions), "decisions", int64(c.n[decisions])
	s.Dropped = int64(c.metrics[metricDecisions]["error"])
	if s.State != console.Degraded {
		s.State = c.state(decisions)
	}
	return s
}

func serveStage(version string, replicas int, x serving.Stats) console.Stage {
	s := console.Stage{Name: console.Serve, State: console.Idle}
	switch {
	case version == "":
		s.State, s.Detail = console.Degraded, "no model loaded: the model server starts or does not answer, or the champion is not for its base"
	case replicas == 0:
		s.State, s.Detail = console.Degraded, "no model server answers for "+version+"; creatives that exist are served"
	default:
		s.Detail = fmt.Sprintf("%s on %d %s", version, replicas, plural(replicas, "server"))
		if x.Swap.Flips > 0 {
			s.Detail += fmt.Sprintf(", %d hot %s, worst %v", x.Swap.Flips, plural(x.Swap.Flips, "swap"), x.Swap.FlipWorst.Round(10*time.Microsecond))
		}
	}
	if g := x.Gateway; g.Failed+g.WrongVersion > 0 {
		s.Detail += fmt.Sprintf("; of %d requests to models %d failed, %d got another version", g.Requests, g.Failed, g.WrongVersion)
	}
	return s
}

// brief is a duration without the zeros at its end: 5m, not 5m0s.
func brief(d time.Duration) string {
	s := d.String()
	for _, end := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, end) {
			s = s[:len(s)-2]
		}
	}
	return s
}

func plural(n int, what string) string {
	if n == 1 {
		return what
	}
	return what + "s"
}

// freshness compares the newest click that the champion has learned from with the newest event.
func freshness(st *control.State, newest int64) console.Freshness {
	version := st.Routes[rollout.Logical].Champion
	m := st.Models[version]
	switch {
	case m == nil:
		return console.Freshness{Why: "No model has been made champion yet."}
	case m.Base == "":
		return console.Freshness{Why: "The live model is the base model: it has seen no click of this shop."}
	}
	to := cmp.Or(m.LabelsTo, st.Datasets[m.Dataset].ToMS)
	if to == 0 {
		return console.Freshness{Why: version + " does not say which clicks it has learned from."}
	}
	f := console.Freshness{NewestClick: eventTime(to)}
	if newest > 0 {
		age := max(0, float64(newest-to)/1000)
		f.AgeSeconds = &age
	} else {
		f = console.Freshness{Why: "No event has been seen since this process started, so the age of what " + version +
			" has learned is not known."}
	}
	return f
}

func champion(st *control.State, t traffic) *console.Champion {
	r := st.Routes[rollout.Logical]
	m := st.Models[r.Champion]
	if m == nil {
		return nil
	}
	c := &console.Champion{Version: r.Champion, Since: r.Since, Previous: r.Previous, Note: m.Reason, Pairs: st.Datasets[m.Dataset].Pairs}
	if t.champion == r.Champion { // not yet the figures of the one before
		c.Impressions, c.Clicks = t.championImpressions, t.championClicks
	}
	return c
}

// latestExperiment is the running one, else the one decided last.
func latestExperiment(st *control.State) *control.ExperimentStatus {
	var best *control.ExperimentStatus
	for _, x := range st.Experiments {
		if best == nil || x.Running() && !best.Running() || x.Running() == best.Running() && x.Created.After(best.Created) {
			best = x
		}
	}
	return best
}

func (o *overview) creatives(st *control.State, bg background) []console.Creative {
	var x control.ExperimentStatus
	if running := st.Running(rollout.Logical); len(running) > 0 {
		x = *running[0]
	}
	out := make([]console.Creative, 0, len(bg.latest))
	for _, c := range bg.latest {
		n := bg.traffic.byCreative[c.ID]
		v := console.Creative{
			ID: c.ID, Product: c.Product, Title: c.Product, Category: c.Category, Version: c.ModelVersion, Variant: variant(x, c.ModelVersion),
			Description: c.Description, Created: c.Created, Impressions: n.impressions, Clicks: n.clicks,
		}
		if p, ok := o.app.catalog.Get(c.Product); ok {
			v.Title, v.Category = p.Title, p.Category
		}
		out = append(out, v)
	}
	return out
}

// variant of a version in a running experiment.
func variant(x control.ExperimentStatus, version string) string {
	switch version {
	case "":
		return ""
	case x.Control:
		return "control"
	case x.Treatment:
		return "treatment"
	}
	return ""
}

// newestCreatives are the n that were made last and may serve, newest first.
func newestCreatives(all []schemas.Creative, n int) []schemas.Creative {
	all = slices.DeleteFunc(slices.Clone(all), func(c schemas.Creative) bool { return c.Blocked != "" })
	slices.SortFunc(all, func(a, b schemas.Creative) int { return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID)) })
	return all[:min(len(all), n)]
}

// Severities of alerts.
const (
	page = "page"
	warn = "warn"
)

func (o *overview) alerts(st *control.State, l joiner.Ledger, bg background) []console.Alert {
	var out []console.Alert
	add := func(severity, format string, args ...any) {
		out = append(out, console.Alert{Severity: severity, Title: fmt.Sprintf(format, args...)})
	}
	if !l.Balanced {
		add(page, "The ledger of the join does not close: %s", ledgerProblem(l, 0))
	}
	if o.badRuns > 1 {
		add(
			page,
			"Labels in the warehouse differ from what the joiner has made, in %d minutes of event time (`ctrloop sql --question exact` lists them)",
			bg.audit,
		)
	}
	if s := o.app.serving; s != nil {
		version, replicas := s.service.Live(rollout.Logical)
		up := time.Since(o.app.started)
		switch {
		case replicas > 0:
			o.answered = true
		case o.answered || up > slowStart:
			add(page, "No model server answers for %s", cmp.Or(version, rollout.Logical))
		case up > time.Minute: // a model server that starts is no emergency
			add(warn, "No model server has answered for %s yet", cmp.Or(version, rollout.Logical))
		}
	}
	if s := o.app.serving; s != nil && s.experiment != nil {
		for _, id := range slices.Sorted(maps.Keys(st.Experiments)) {
			if seen := s.experiment.Seen(id); seen.Alarm && st.Experiments[id].Running() {
				add(page, "%s", clip(fmt.Sprintf("Nobody sees what experiment %s does: %d looks in a row failed: %s", id, seen.Failed, seen.Error)))
			}
		}
	}
	if bg.warehouseErr != nil {
		add(warn, "%s", clip(fmt.Sprintf("The warehouse does not answer in time, figures from it are old: %v", bg.warehouseErr)))
	}
	return append(out, controlAlerts(st)...)
}

// controlAlerts are those that the control log knows of.
func controlAlerts(st *control.State) []console.Alert {
	var out []console.Alert
	for slice, b := range st.Breakers {
		out = append(out, console.Alert{Severity: page, Title: fmt.Sprintf("The circuit breaker of %s is open: %s", slice, b.Reason)})
	}
	for _, j := range st.Jobs {
		if j.State != control.JobBroken {
			continue
		}
		healed := false // a later job of its stage went well
		for _, k := range st.Jobs {
			healed = healed || stageOf(k.ID) == stageOf(j.ID) && k.State == control.JobSucceeded && k.Finished.After(j.Finished)
		}
		if !healed {
			out = append(out, console.Alert{Severity: warn, Title: clip("Training job " + failure(j)), Since: j.Finished})
		}
	}
	return out
}

// since dates the alerts that do not know when they began by when they were first seen here, worst first.
func (o *overview) since(now time.Time, alerts []console.Alert) []console.Alert {
	firing := map[string]time.Time{}
	for i := range alerts {
		x := &alerts[i]
		if !x.Since.IsZero() {
			continue
		}
		key, _, _ := strings.Cut(x.Title, ":") // what follows may change from one look to the next
		if x.Since = o.firing[key]; x.Since.IsZero() {
			x.Since = now
		}
		firing[key] = x.Since
	}
	o.firing = firing
	slices.SortFunc(alerts, func(a, b console.Alert) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), a.Since.Compare(b.Since), cmp.Compare(a.Title, b.Title))
	})
	return alerts
}

// eventClock says whether event time is not the time of this machine.
func (a *App) eventClock() bool { return a.cfg.Ingest.Clock == ingest.ClockEvent }
