package overview

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"ctrloop/schemas/control"
	"ctrloop/serving"
	"ctrloop/serving/console"
	"ctrloop/serving/rollout"
)

// stage is what of says, of a part that this process runs and that has started.
func (o *Page) stage(name console.StageName, p Part, of func() console.Stage) console.Stage {
	switch o.p.Presence(p) {
	case Up:
		return of()
	case Starting:
		return console.Stage{Name: name, State: console.Starting, Detail: "starting"}
	case Elsewhere:
	}
	return console.Stage{Name: name, State: console.Stopped, Detail: "not in this process"}
}

func ingestStage(c counted, join Join, bg background) console.Stage {
	s := console.Stage{
		Name: console.Ingest, State: c.state(impressions), Rate: c.rate(impressions), RateOf: "impressions",
		Dropped: int64(sum(c.metrics[metricDropped]) + sum(c.metrics[metricRejected])), Detail: "everything is read",
	}
	// The counter begins with the process, the join's ledger with the data; the counter is ahead by what is on
	// its way to the join.
	s.Total = max(int64(c.n[impressions]), join.Ledger.Received)
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

func (o *Page) joinStage(c counted, join Join, newest int64, bg background) console.Stage {
	s := console.Stage{
		Name: console.Join, State: c.state(labels), Rate: c.rate(labels), RateOf: "labels", Total: int64(c.n[labels]),
		Dropped: join.Dropped, Detail: fmt.Sprintf("%d open in a window of %s", join.Ledger.Open, brief(o.p.Window)),
	}
	if low := join.watermarkMS(); low > 0 && newest > 0 {
		lag := max(0, float64(newest-low)/1000)
		s.LagSeconds, s.LagOf = &lag, "watermark behind the newest event, event time"
	}
	if o.p.Presence(Sink) != Elsewhere && bg.backlog.sink > 0 {
		s.Detail += fmt.Sprintf("; %d records on their way to the warehouse", bg.backlog.sink)
	}
	if problem := join.problem(o.p.Partitions); problem != "" {
		s.State, s.Detail = console.Degraded, problem
	}
	return s
}

// newestMS is the event time of the newest event, 0 for none.
func (j Join) newestMS() (ms int64) {
	for _, p := range j.Partitions {
		ms = max(ms, p.NewestMS)
	}
	return ms
}

// watermarkMS is the lowest of the partitions that have one: an input without events holds none up for long.
func (j Join) watermarkMS() (low int64) {
	for _, p := range j.Partitions {
		if p.WatermarkMS > 0 && (low == 0 || p.WatermarkMS < low) {
			low = p.WatermarkMS
		}
	}
	return low
}

// problem says what is wrong; "" for nothing. The join has so many partitions in all.
func (j Join) problem(partitions int) string {
	for _, p := range j.Partitions {
		if p.Problem != "" {
			return fmt.Sprintf("partition %d: %s", p.Number, p.Problem)
		}
	}
	if len(j.Partitions) == 0 {
		return fmt.Sprintf("no partition yet of %d: being assigned or rebuilt", partitions)
	}
	return ""
}

func pairStage(p Pairing, every time.Duration, c counted, newest int64, now time.Time) console.Stage {
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
	if age := now.Sub(p.At); age > 3*every+time.Minute {
		s.State, s.Detail = console.Degraded, fmt.Sprintf(
			"the last look was %s ago: see the log for what keeps it",
			brief(age.Round(time.Second)),
		)
	}
	if p.Problem != "" {
		s.State, s.Detail = console.Degraded, p.Problem
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

func (o *Page) trainStage(c counted, st *control.State, now time.Time) console.Stage {
	s := trainStage(st, now, o.p.Jobs.Progress)
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

// modelOf is the version that a job made.
func modelOf(st *control.State, job string) *control.ModelStatus {
	for _, m := range st.Models {
		if m.Job == job {
			return m
		}
	}
	return nil
}

func (o *Page) serveStage(c counted) console.Stage {
	version, replicas := o.p.Serving.Live(rollout.Logical)
	s := serveStage(version, replicas, o.p.Serving.Stats())
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
