package overview

import (
	"context"
	"sync"
	"time"

	"ctrloop/schemas"
	"ctrloop/serving/console"
)

// Page is a console.Source.
type Page struct {
	p Parts

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

var _ console.Source = (*Page)(nil)

// New makes the page of a process.
func New(p Parts) *Page { return &Page{p: p} }

// Overview implements console.Source.
func (o *Page) Overview(ctx context.Context) (console.Overview, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now, st := time.Now(), o.p.Control()
	bg := o.background(ctx, st)

	join := Join{Balanced: true}
	if o.up(Joiner) {
		join = o.p.Join()
	}
	newest := max(join.newestMS(), bg.traffic.newestMS)
	c := o.count(join, bg)
	if o.up(Trainer) {
		c.n[steps] = float64(o.steps(st))
	}
	o.samples = addSample(o.samples, sample{now, c.n})
	c.samples = o.samples

	out := console.Overview{
		Time: now, EventTime: eventTime(newest), Instance: o.instance(now), Ledger: join.Ledger,
		Stages: []console.Stage{
			o.stage(console.Ingest, Ingest, func() console.Stage { return ingestStage(c, join, bg) }),
			o.stage(console.Join, Joiner, func() console.Stage { return o.joinStage(c, join, newest, bg) }),
			o.stage(console.Pair, Pairer, func() console.Stage { return pairStage(o.p.Pairing(), o.p.PairEvery, c, newest, now) }),
			o.stage(console.Train, Trainer, func() console.Stage { return o.trainStage(c, st, now) }),
			o.stage(console.Serve, Serving, func() console.Stage { return o.serveStage(c) }),
		},
		Freshness: freshness(st, newest), Champion: champion(st, bg.traffic), Rollout: o.rollout(bg),
		CTR:   whole(bg.traffic.series, bg.traffic.horizonMS),
		Marks: bg.history.marks, Creatives: o.creatives(st, bg), Events: bg.history.events,
	}
	out.Alerts = o.since(now, o.alerts(st, join, bg))
	out.Stale = o.stale(now)
	return out, nil
}

func (o *Page) instance(now time.Time) console.Instance {
	in := o.p.Instance
	in.UptimeSeconds = now.Sub(o.p.Started).Seconds()
	return in
}

// up says whether a part of this process has started.
func (o *Page) up(p Part) bool { return o.p.Presence(p) == Up }

// eventTime is nil for 0: not known.
func eventTime(ms int64) *time.Time {
	if ms <= 0 {
		return nil
	}
	t := time.UnixMilli(ms).UTC()
	return &t
}
