package app

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"ctrloop/ingest"
	"ctrloop/internal/artifact"
	"ctrloop/internal/stream"
	"ctrloop/joiner"
	"ctrloop/joiner/sink"
	"ctrloop/pairer"
	"ctrloop/schemas/control"
	trainerbridge "ctrloop/trainer-bridge"
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
	a.actors.start("sink", func(ctx context.Context) error {
		if err := a.refill(ctx, a.sink); err != nil {
			return err
		}
		return a.sink.Run(ctx)
	})
	a.sink.Report(a.ready.Gate("sink inserts").ReportText)
	rollups := leads{a.lead(control.RoleRollups)}
	a.actors.start("rollups", func(ctx context.Context) error {
		return a.db.RunRollups(ctx, rollUpInterval, rollups.IsLeader, a.log)
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
	a.pairer, err = pairer.New(a.cfg.Pairer, pairer.Deps{
		Source: evidence{a.db}, Creatives: pairCreatives{a.ads, a.store, a.catalog, px}, Lead: a.lead(control.RolePairer),
		Publisher: pairTopic{producer}, Store: a.store, Log: a.log, Registry: a.registry,
	})
	if err != nil {
		return err
	}
	a.actors.start("pairer", a.pairer.Run)
	return nil
}

func (a *App) startTrainer(ctx context.Context) error {
	if err := a.preparePython(); err != nil {
		return err
	}
	if err := a.prepareBase(); err != nil {
		return err
	}
	if a.cfg.Images.Backend == ImagesDiffusion { // jobs draw with the model itself, whoever paints what is served
		if err := a.checkImageModel(); err != nil {
			return err
		}
	}
	digest, err := artifact.DigestDir(a.base)
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this binary: %w", err)
	}
	work := filepath.Join(a.opt.Dir, JobsFolder)
	grammarFile, catalogueFile, err := WriteVocabulary(work, a.catalog, a.holdout)
	if err != nil {
		return err
	}
	a.runner = &trainerbridge.Local{
		Python: a.python, Trainer: a.trainerDir, Dir: work, Base: a.base, Grammar: grammarFile, Catalogue: catalogueFile,
		Renderer: a.renderer(exe, grammarFile), Threads: a.cfg.Trainer.Threads, Placement: a.cfg.Trainer.Placement(),
		Timeout:   a.cfg.Trainer.Timeout,
		StopGrace: a.cfg.Trainer.StopGrace, Store: a.store, Log: a.log,
	}
	bridge, err := trainerbridge.New(a.cfg.Trainer, trainerbridge.Deps{
		Lead: a.lead(control.RoleTrainer), Runner: a.runner, Store: a.store, Base: digest, Log: a.log, Registry: a.registry,
	})
	if err != nil {
		return err
	}
	a.actors.start("trainer-bridge", bridge.Run)
	return nil
}

func (a *App) startIngest(ctx context.Context) error {
	var err error
	if a.ingest, err = ingest.New(a.cfg.Ingest, a.kafka, a.log, a.registry); err != nil {
		return err
	}
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
