package app

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"ctrloop/ingest"
	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
	"ctrloop/internal/warehouse/query"
	"ctrloop/joiner"
	"ctrloop/joiner/sink"
	"ctrloop/schemas"
	"ctrloop/serving/console"
	"ctrloop/serving/console/overview"
)

// overviewParts are what the console's page is made of in this process.
func (a *App) overviewParts() overview.Parts {
	return overview.Parts{
		Instance: a.instance(), Started: a.started, EventClock: a.cfg.Ingest.Clock == ingest.ClockEvent,
		Partitions: int(a.cfg.Kafka.Partitions), Window: a.cfg.Joiner.Window, PairEvery: a.cfg.Pairer.Interval,
		GuardMargin: a.cfg.Experiment.Ramp.Margin,
		Presence:    a.presence, Control: a.control.State, Creatives: a.ads.All, Catalogue: a.catalog, Warehouse: a.db, Counters: a.registry,
		Join:    func() overview.Join { return joinOf(a.joiner.Ledger()) },
		Pairing: a.pairing, Jobs: jobs{a},
		RawLag: func(ctx context.Context) (int64, error) {
			return stream.Lag(ctx, a.kafka, ingest.Group, schemas.TopicRawImpressions, schemas.TopicRawClicks)
		},
		SinkLag: func(ctx context.Context) (int64, error) { return a.sink.Lag(ctx) },
		Audit:   a.readAudit,
		Serving: a.serving.service, Experiments: a.serving.experiment,
	}
}

// auditPatience is how long an audit that sees a difference waits for rows that are on their way.
const auditPatience = 5 * time.Second

// readAudit counts the minutes before a time, Unix seconds, in which the labels here are not those that the joiner says it made, by the
// rule of the sink's audit and of `ctrloop audit`: what is on its way from the topics explains a difference.
func (a *App) readAudit(ctx context.Context, before int64) (int64, error) {
	if n, err := a.db.Count(ctx, query.Text("audit_before")+" SETTINGS max_threads = 1", before); err != nil || n == 0 {
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

func (a *App) instance() console.Instance {
	in := console.Instance{Name: a.opt.Dir, Version: a.opt.Version, Mode: "embedded"}
	if len(a.cfg.Kafka.Brokers) > 0 || a.cfg.ClickHouse.DSN != "" {
		in.Mode = "production"
		in.Name = cmp.Or(a.cfg.ClickHouse.Cluster, in.Name)
	}
	return in
}

// presence says whether this process runs a service, and whether it has started. The page is there before the last of them are.
func (a *App) presence(p overview.Part) overview.Presence {
	if !a.runs(Target(p)) {
		return overview.Elsewhere
	}
	_, gates := a.ready.State()
	for _, g := range gates {
		if g.Name == string(p) && g.Ready {
			return overview.Up
		}
	}
	return overview.Starting
}

func (a *App) pairing() overview.Pairing {
	s := a.pairer.Status()
	p := overview.Pairing{At: s.At, ToMS: s.ToMS, Reason: s.Reason, Problem: a.auditor.Status().Problem()}
	for _, l := range a.evidence.Ledger().Partitions {
		if l.Problem != "" {
			p.Problem = fmt.Sprintf("partition %d: %s", l.Partition, l.Problem)
		}
	}
	return p
}

// jobs are those of the runner, which starts after the page.
type jobs struct{ a *App }

func (j jobs) Progress(job string) string { return j.a.jobs.Progress(job) }
func (j jobs) JobDir(job string) string   { return j.a.jobs.JobDir(job) }

// joinOf is the join's account as the page shows it.
func joinOf(l joiner.Ledger) overview.Join {
	t := l.Total
	j := overview.Join{
		Ledger: console.Ledger{
			Received: int64(t.ImpressionsIn), Positive: int64(t.Positive), Negative: int64(t.FinalNegative), Open: int64(t.Open),
			Duplicate: int64(t.Duplicate), Late: int64(t.LateImpressions),
		},
		Labels: int64(t.Positive + t.FinalNegative + t.Corrected),
		// A late click that corrected its negative took part after all.
		Dropped:  int64(t.Duplicate+t.LateImpressions+t.Repeated+t.OrphanExpired+t.LateClicks) - int64(t.Corrected),
		Balanced: l.Balanced,
	}
	for _, p := range l.Partitions {
		j.Partitions = append(j.Partitions, overview.Partition{
			Number: p.Partition, WatermarkMS: p.WatermarkMS, NewestMS: max(p.MaxImpressionMS, p.MaxClickMS), Problem: p.Problem,
		})
	}
	return j
}
