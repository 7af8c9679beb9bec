// Package app is the composition root: it builds the services of one process from the configuration, connects
// them, and stops them in order. Which services run is Options.Targets; everything that a service needs and
// that the configuration does not name by address (broker, ClickHouse, model server) is started embedded.
package app

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/ingest"
	"ctrloop/internal/access"
	"ctrloop/internal/admin"
	"ctrloop/internal/artifact"
	"ctrloop/internal/catalogue"
	"ctrloop/internal/config"
	"ctrloop/internal/controllog"
	"ctrloop/internal/creativelog"
	"ctrloop/internal/httpapi"
	"ctrloop/internal/setup"
	"ctrloop/internal/stream"
	"ctrloop/internal/telemetry"
	"ctrloop/internal/warehouse"
	"ctrloop/joiner"
	"ctrloop/joiner/sink"
	"ctrloop/pairer"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving/rollout"
	trainerbridge "ctrloop/trainer-bridge"
)

// Target names a service that a process may run.
type Target string

// Targets, in the order in which they start.
const (
	Ingest  Target = "ingest"
	Joiner  Target = "joiner"
	Sink    Target = "sink"
	Pairer  Target = "pairer"
	Trainer Target = "trainer"
	Serving Target = "serving"
)

// service is a target and how it starts.
type service struct {
	name  Target
	start func(*App, context.Context) error
}

// targets are the services in the order of their start. It reads as the architecture.
var targets = []service{
	{Joiner, (*App).startJoiner},
	{Sink, (*App).startSink},
	{Serving, (*App).startServing},
	{Pairer, (*App).startPairer},
	{Trainer, (*App).startTrainer},
	{Ingest, (*App).startIngest}, // last: events come in when everything behind is there
}

// ParseTargets reads a comma-separated list; "all" and "" are every service.
func ParseTargets(list string) ([]Target, error) {
	var out []Target
	for name := range strings.SplitSeq(list, ",") {
		name = strings.TrimSpace(name)
		if name == "all" || name == "" && list == "" {
			for _, t := range targets {
				out = append(out, t.name)
			}
			continue
		}
		if !slices.ContainsFunc(targets, func(s service) bool { return s.name == Target(name) }) {
			return nil, fmt.Errorf("no service %q: want all, or some of ingest, joiner, sink, pairer, trainer, serving, separated by commas", name)
		}
		out = append(out, Target(name))
	}
	return out, nil
}

// Options of a process.
type Options struct {
	Config  Config
	Targets []Target
	Dir     string // all state of the process and of what it embeds
	Home    string // downloads: engine and Python environment
	Version string // of the binary
	Log     zerolog.Logger
	// EventNow is the clock of the traffic. Nil: the wall clock with ingest.clock wall, and the newest event
	// that was seen with ingest.clock event.
	EventNow func() time.Time
}

// App is a running process.
type App struct {
	opt      Options
	cfg      Config
	log      zerolog.Logger
	registry *prometheus.Registry
	ready    *telemetry.Readiness
	begun    *telemetry.Gate            // everything has been started
	gates    map[Target]*telemetry.Gate // of the services that run
	checks   []check
	who      *httpapi.Tokens
	kit      *httpapi.Kit
	actors   *actors
	started  time.Time

	kafka   stream.Config
	control *controllog.Log
	ads     *creativelog.Log
	broker  *stream.Embedded
	engine  *warehouse.Engine
	db      *warehouse.DB
	readDSN string
	store   *artifact.Store
	catalog *catalogue.Catalogue

	python, trainerDir string // of the Python parts, once needed
	base               string // folder of the base prompt model

	ingest  *ingest.Service
	joiner  *joiner.Service
	sink    *sink.Service
	pairer  *pairer.Service
	runner  *trainerbridge.Local
	serving *servingParts

	addresses Addresses
}

// Addresses of a running process, as run.json holds them.
type Addresses struct {
	API        string `json:"api,omitempty"`
	Edge       string `json:"edge,omitempty"`
	Admin      string `json:"admin,omitempty"`
	Kafka      string `json:"kafka,omitempty"`
	ClickHouse string `json:"clickhouse,omitempty"`
	// Token is that of whoever may read this file: everything is allowed with it. Drawn at each start.
	Token string `json:"token,omitempty"`
	PID   int    `json:"pid"`
}

// Names in the folder of an instance.
const (
	LockFile     = "LOCK"          // held by the process that runs on the folder
	RunFile      = "run.json"      // where it answers while it runs: Addresses
	EngineFolder = "clickhouse"    // the embedded ClickHouse
	KafkaFolder  = "kafka"         // the embedded broker
	JobsFolder   = "jobs"          // of training jobs, with their logs and checkpoints
	JoinerFolder = "joiner"        // the joiner's cache of its state
	WebhooksFile = "webhooks.json" // how far webhooks have been sent
)

// Start builds and starts everything and returns when it is ready. What was started is stopped again on an error.
func Start(ctx context.Context, opt Options) (_ *App, err error) {
	a := &App{
		opt: opt, cfg: opt.Config, log: opt.Log, registry: telemetry.NewRegistry(opt.Version), ready: telemetry.NewReadiness(),
		actors: newActors(opt.Log), started: time.Now(), gates: map[Target]*telemetry.Gate{},
	}
	a.cfg.Ingest.UserSalt = config.Secret(a.cfg.Salt())
	defer func() {
		if err != nil {
			a.actors.stop()
		}
	}()
	if err := os.MkdirAll(opt.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	unlock, err := lockDir(opt.Dir, opt.Targets)
	if err != nil {
		return nil, err
	}
	a.actors.onStop("data folder", unlock) // the first to start, so the last to stop
	a.openGates()
	for _, s := range []struct {
		name  string
		start func(context.Context) error
	}{
		{"access", a.openDoor}, {"admin", a.startAdmin}, {"kafka", a.startKafka}, {"warehouse", a.startWarehouse}, {"artifacts", a.openArtifacts},
		{"logs", a.openLogs},
	} {
		if err := s.start(ctx); err != nil {
			return nil, fmt.Errorf("start %s: %w", s.name, err)
		}
	}
	for _, t := range targets {
		if !a.runs(t.name) {
			continue
		}
		if err := t.start(a, ctx); err != nil {
			return nil, fmt.Errorf("start %s: %w", t.name, err)
		}
		a.gates[t.name].Healthy()
	}
	a.actors.start("health", a.watch)
	a.begun.Healthy()
	a.addresses.PID = os.Getpid()
	if err := writeRunFile(filepath.Join(opt.Dir, RunFile), a.addresses); err != nil {
		return nil, err
	}
	return a, nil
}

// openGates has a gate for all that must begin, before anybody can ask: what has not begun is not ready.
func (a *App) openGates() {
	a.begun = a.ready.Gate("start")
	for _, t := range targets {
		if a.runs(t.name) {
			a.gates[t.name] = a.ready.Gate(string(t.name))
		}
	}
}

func (a *App) runs(t Target) bool { return slices.Contains(a.opt.Targets, t) }

// needs says whether one of the targets runs.
func (a *App) needs(ts ...Target) bool { return slices.ContainsFunc(ts, a.runs) }

// Wait returns when ctx is done (nil) or a part of the process has failed.
func (a *App) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-a.actors.failed:
		return err
	}
}

// Stop ends everything, from the outside in, with nothing lost.
func (a *App) Stop() {
	start := time.Now()
	a.actors.stop()
	_ = os.Remove(filepath.Join(a.opt.Dir, RunFile))
	a.log.Info().Dur("took", time.Since(start)).Msg("stopped")
}

func writeRunFile(path string, v Addresses) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", RunFile, err)
	}
	return artifact.WriteFile(path, append(raw, '\n'), 0o600) // the warehouse's address holds its password
}

func (a *App) startAdmin(context.Context) (err error) {
	if a.cfg.Admin.Address == "" {
		return nil
	}
	a.addresses.Admin, err = a.listen("admin", a.cfg.Admin.Address, a.adminRoutes())
	return err
}

func (a *App) adminRoutes() []httpapi.Route {
	return append(admin.Routes(a.registry, a.ready, func() ([]byte, error) { return config.Show(a.cfg) }),
		httpapi.Route{Method: http.MethodPost, Path: BackupPath, Scope: access.Admin, Handle: a.backup})
}

// clientLogInterval is how often the same line of a Kafka client is written at most.
const clientLogInterval = 10 * time.Second

func (a *App) startKafka(ctx context.Context) error {
	a.kafka = a.cfg.Kafka.Config
	a.kafka.Log, a.kafka.Metrics = telemetry.NewThrottle(a.log, clientLogInterval, time.Now), a.registry
	if len(a.kafka.Brokers) == 0 {
		e, err := stream.StartEmbedded(stream.EmbeddedConfig{Dir: filepath.Join(a.opt.Dir, KafkaFolder), Port: a.cfg.Kafka.EmbeddedPort})
		if err != nil {
			return err
		}
		a.broker = e
		a.actors.onStop("embedded kafka", e.Close)
		a.kafka.Brokers = e.Brokers()
	}
	if err := stream.CheckBroker(ctx, a.kafka); err != nil {
		return err
	}
	a.addresses.Kafka = strings.Join(a.kafka.Brokers, ",")
	if err := stream.EnsureTopics(ctx, a.kafka, schemas.Topics(), a.cfg.Kafka.Partitions, a.cfg.Kafka.Retention); err != nil {
		return err
	}
	if a.broker != nil { // one process with one disk: README.md says so
		return nil
	}
	var names []string
	for _, t := range schemas.Topics() {
		names = append(names, t.Name)
	}
	warning, err := stream.CheckCopies(ctx, a.kafka, names...)
	if warning != "" {
		a.log.Warn().Str("component", "kafka").Msg(warning)
	}
	return err
}

func (a *App) startWarehouse(ctx context.Context) error {
	if !a.needs(Sink, Pairer, Serving) {
		return nil
	}
	dsn := a.cfg.ClickHouse.DSN
	a.readDSN = a.cfg.ClickHouse.ReadOnlyDSN
	if dsn == "" {
		lib, err := setup.Library(a.opt.Home)
		if err != nil {
			return err
		}
		a.engine, err = warehouse.StartEngine(
			ctx,
			warehouse.EngineConfig{
				Lib: lib, Dir: filepath.Join(a.opt.Dir, EngineFolder), MaxMemoryBytes: a.cfg.ClickHouse.MaxMemoryBytes,
				TCPPort: a.cfg.ClickHouse.EmbeddedPort, HTTPPort: a.cfg.ClickHouse.EmbeddedHTTPPort,
			},
			a.log,
		)
		if err != nil {
			return err
		}
		a.actors.onStop("embedded clickhouse", func() {
			stop, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if err := a.engine.Stop(stop); err != nil {
				a.log.Warn().Err(err).Msg("the embedded ClickHouse did not stop cleanly; what it acknowledged is safe")
			}
		})
		dsn, a.readDSN = a.engine.DSN(), a.engine.ReadOnlyDSN()
	}
	if a.readDSN == "" {
		a.readDSN = dsn
	}
	db, err := warehouse.Open(ctx, dsn)
	if err != nil {
		return err
	}
	a.db = db
	a.actors.onStop("warehouse connections", func() { _ = db.Close() })
	a.check("warehouse", db.Ping)
	a.addresses.ClickHouse = a.readDSN
	err = db.Migrate(ctx, warehouse.Options{
		Cluster: a.cfg.ClickHouse.Cluster, Window: a.cfg.Joiner.Window, Bucket: a.cfg.Joiner.Bucket,
		SaltCheck: ingest.SaltCheck(a.cfg.Salt()),
	})
	if err != nil {
		return err
	}
	if a.engine != nil && !a.runs(Sink) {
		a.actors.start("refill", a.refillBeside)
	}
	return nil
}

func (a *App) openArtifacts(ctx context.Context) (err error) {
	if !a.needs(Pairer, Trainer, Serving) {
		return nil
	}
	if a.store, err = artifact.Open(filepath.Join(a.opt.Dir, "artifacts")); err != nil {
		return err
	}
	if a.catalog, err = catalogue.Open(a.cfg.Products); err != nil {
		return err
	}
	if a.db == nil {
		return nil
	}
	rows := make([]warehouse.ProductRow, 0, len(a.catalog.Products()))
	for _, p := range a.catalog.Products() {
		rows = append(rows, warehouse.ProductRow{ID: p.ID, Title: p.Title, Category: p.Category, Holdout: a.holdout(p.ID)})
	}
	return a.db.InsertProducts(ctx, rows)
}

func (a *App) holdout(product string) bool {
	return schemas.Holdout(product, a.cfg.Pairer.HoldoutFraction) || slices.Contains(a.cfg.Pairer.HoldoutProducts, product)
}

func (a *App) openLogs(ctx context.Context) (err error) {
	if !a.needs(Joiner, Sink, Pairer, Trainer, Serving) {
		return nil
	}
	if a.control, err = controllog.Open(ctx, a.kafka, a.controlOptions(), a.log, a.registry); err != nil {
		return err
	}
	a.actors.onStop("control log", a.control.Close)
	a.follow("control log", a.control)
	a.actors.start("copy of the control log", a.control.Wait)
	if !a.needs(Pairer, Trainer, Serving) {
		return nil // the joiner's circuit breaker and the sink's leases need the control log alone
	}
	if a.ads, err = creativelog.Open(ctx, a.kafka, a.log, a.registry); err != nil {
		return err
	}
	a.actors.onStop("creative log", a.ads.Close)
	a.follow("creative log", a.ads)
	a.actors.start("copy of the creative log", a.ads.Wait)
	return nil
}

// followed is a log that this process keeps a copy of.
type followed interface {
	Changed() <-chan struct{}
	Done() <-chan struct{}
	Err() error // why the copy must not be relied on
}

// follow makes the process not ready, with the reason, while its copy of a log is not to be relied on.
func (a *App) follow(name string, log followed) {
	gate := a.ready.Gate(name)
	a.actors.start("watch of the "+name, func(ctx context.Context) error {
		for done := log.Done(); ; {
			changed := log.Changed()
			gate.Report(log.Err())
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			case <-done:
				done = nil
			}
		}
	})
}

// controlOptions name the process. With the embedded broker there is no other one: the next start goes on at once.
func (a *App) controlOptions() controllog.Options {
	if a.broker != nil {
		return controllog.Options{Owner: "embedded"}
	}
	return controllog.Options{}
}

// lead claims a single-writer role for this process, until what is started after it has ended.
func (a *App) lead(role control.Role) *controllog.Holder {
	h := a.control.Hold(role)
	a.actors.start("lease of "+string(role), h.Run)
	return h
}

// leads asks a holder whether this process leads.
type leads struct{ *controllog.Holder }

// IsLeader implements sink.Leader.
func (l leads) IsLeader() bool { return l.Held() != nil }

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
	a.sink.Report(a.ready.Gate("sink inserts").Tell)
	rollups := leads{a.lead(control.RoleRollups)}
	a.actors.start("rollups", func(ctx context.Context) error {
		return a.db.KeepRolledUp(ctx, rollUpInterval, rollups.IsLeader, a.log)
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

// preparePython finds the Python environment and unpacks the trainer beside it. Whatever starts Python calls it, and nothing
// else does: the environment is large, and a machine of other services has none.
func (a *App) preparePython() (err error) {
	if a.python == "" {
		if a.python, err = setup.Python(a.opt.Home, trainerbridge.Lock()); err != nil {
			return err
		}
	}
	return a.unpackTrainer()
}

// unpackTrainer writes out what this binary carries of the trainer: its source and the models that ship. It needs no Python.
func (a *App) unpackTrainer() (err error) {
	if a.trainerDir == "" {
		a.trainerDir, err = trainerbridge.Extract(filepath.Join(a.opt.Home, trainerbridge.Folder))
	}
	return err
}

// prepareBase finds the base prompt model.
func (a *App) prepareBase() (err error) {
	if a.base == "" {
		a.base, err = a.pickBase()
	}
	return err
}

// pickBase returns the folder of the base prompt model. Adapters fit one base only, and another release may
// ship another base: a folder stays with the one that its champion belongs to, kept among its artifacts.
func (a *App) pickBase() (string, error) {
	if a.cfg.Models.Base != "" {
		return a.cfg.Models.Base, nil
	}
	if err := a.unpackTrainer(); err != nil {
		return "", err
	}
	digest, err := a.store.PutDir(trainerbridge.BaseModel(a.trainerDir))
	if err != nil {
		return "", err
	}
	st := a.control.State()
	if champion := st.Models[st.Routes[rollout.Logical].Champion]; champion != nil {
		if digest = champion.Base; digest == "" {
			digest = champion.Artifact
		}
	}
	if !a.store.Has(digest) {
		return "", fmt.Errorf(
			"the live model belongs to the base %.12s, which is neither among the artifacts of %s nor shipped with this release: restore the "+
				"folder, or name the base with models.base",
			digest,
			a.opt.Dir,
		)
	}
	return a.store.Path(digest), nil
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
