package app

import (
	"cmp"
	"context"
	"path/filepath"
	"time"

	"ctrloop/ingest"
	"ctrloop/internal/stream"
	"ctrloop/joiner"
	"ctrloop/joiner/sink"
	"ctrloop/pairer"
	"ctrloop/pairer/evidence/stage"
	"ctrloop/schemas/control"
)

func (a *App) startJoiner(context.Context) (err error) {
	cfg := a.cfg.Joiner
	cfg.Kafka = a.kafka
	if cfg.Segments.Dir == "" && a.opt.Dir != "" {
		cfg.Segments.Dir = filepath.Join(a.opt.Dir, JoinerFolder)
	}
	if a.joiner, err = joiner.New(cfg, a.log, a.registry); err != nil {
		return err
	}
	a.joiner.Guard(a.control)
	a.joiner.Reports(a.work)
	a.actors.start("joiner", a.joiner.Run)
	return nil
}

// rollUpInterval is how soon a correction of an old day is in the rollups again; a day is counted in seconds. Views
// are exact in between.
const rollUpInterval = time.Minute

func (a *App) startSink(context.Context) (err error) {
	if a.sink, err = sink.New(a.sinkConfig(), a.db, a.log, a.registry); err != nil {
		return err
	}
	a.sink.LeadAudit(leads{a.lead(control.RoleAudit)})
	a.sink.Follow(sink.Join{Group: a.cfg.Joiner.Group, Watermark: joiner.WatermarkOf})
	a.sink.Reports(a.work)
	a.actors.start("sink", func(ctx context.Context) error {
		if err := a.refill(ctx, a.sink); err != nil {
			return err
		}
		return a.sink.Run(ctx)
	})
	rollups := leads{a.lead(control.RoleRollups)}
	a.actors.start("rollups", func(ctx context.Context) error {
		return a.db.RunRollups(ctx, rollUpInterval, rollups.IsLeader, a.work("rollups"), a.log)
	})
	return nil
}

func (a *App) sinkConfig() sink.Config {
	cfg := a.cfg.Sink
	cfg.Kafka = a.kafka
	return cfg
}

func (a *App) startPairer(context.Context) error {
	px, err := viewPx(a.cfg.Models.Base)
	if err != nil {
		return err
	}
	producer, err := stream.NewProducer(a.kafka, stream.ProducerConfig{})
	if err != nil {
		return err
	}
	a.actors.onStop("pair producer", producer.Close)
	lead := a.lead(control.RolePairer)
	if err := a.startEvidence(leads{lead}); err != nil {
		return err
	}
	a.pairer, err = pairer.New(a.cfg.Pairer, pairer.Deps{
		Source: evidence{a.db}, Creatives: pairCreatives{a.ads, a.store, a.catalog, px}, Lead: lead,
		Publisher: pairTopic{producer}, Store: a.store, Log: a.log, Registry: a.registry,
		Work: a.work("looks at the evidence"),
	})
	if err != nil {
		return err
	}
	a.actors.start("pairer", a.pairer.Run)
	return nil
}

// startEvidence adds up labels on evidence.v1, and holds them against the warehouse while this process leads the pairing. The
// pairing does not rest on evidence.v1 yet, so a stage that refuses makes the process not ready, and does not end it.
func (a *App) startEvidence(lead leads) (err error) {
	cfg, join := a.cfg.Pairer.Evidence, a.cfg.Joiner
	cfg.Kafka = a.kafka
	cfg.Join = stage.Join{
		Window: join.Window, Correction: cmp.Or(join.Correction, join.Window), Lateness: join.Lateness, Bucket: join.Bucket,
	}
	gate := a.ready.Gate("evidence")
	gate.Healthy()
	if a.evidence, err = stage.New(cfg, a.log, a.registry, gate.Report); err != nil {
		return err
	}
	a.actors.start("evidence", func(ctx context.Context) error {
		if err := a.evidence.Run(ctx); err != nil {
			a.log.Error().Err(err).Msg("labels are not added up any more; pairs are still made from the warehouse")
			gate.Report(err)
			<-ctx.Done()
		}
		return nil
	})
	if a.auditor, err = stage.NewAuditor(cfg, evidence{a.db}, lead.IsLeader, a.log, a.registry); err != nil {
		return err
	}
	a.actors.start("evidence audit", a.auditor.Run)
	return nil
}

func (a *App) startIngest(ctx context.Context) error {
	var err error
	if a.ingest, err = ingest.New(a.cfg.Ingest, a.kafka, a.log, a.registry); err != nil {
		return err
	}
	a.ingest.Reports(a.work("routing of events"))
	a.actors.start("ingest", a.ingest.Run)
	edge, err := ingest.NewEdge(a.cfg.Ingest, a.kafka, a.log, a.registry)
	if err != nil {
		return err
	}
	a.actors.onStop("edge producer", edge.Close)
	health := a.ready.Gate("edge")
	health.Healthy()
	edge.Reports(health)
	a.actors.start("edge health", edge.Run)
	a.addresses.Edge, err = a.listen("edge listener", a.cfg.Listen.Edge, edge.Routes())
	return err
}
