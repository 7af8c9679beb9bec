// Package app is the composition root: it builds the services of one process from the configuration, connects
// them, and stops them in order. Which services run is Options.Targets; everything that a service needs and
// that the configuration does not name by address (broker, ClickHouse, model server) is started embedded.
package app

import (
	"context"
	"encoding/json"
	"errors"
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
	"ctrloop/internal/broker"
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
	"ctrloop/pairer/evidence/stage"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
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
	// Throwaway says that Dir is removed at the end: only there may the broker keep nothing (kafka.embedded memory).
	Throwaway bool
	Home      string // downloads: engine and Python environment
	Version   string // of the binary
	Log       zerolog.Logger
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
	roles   map[control.Role]*controllog.Holder // that this process claims
	ads     *creativelog.Log
	broker  *broker.Broker // nil: others' brokers, or the one in memory
	alone   bool           // nobody else is on the brokers: they are this process's own
	engine  *warehouse.Engine
	db      *warehouse.DB
	readDSN string
	store   *artifact.Store
	catalog *catalogue.Catalogue

	python, trainerDir string // of the Python parts, once needed
	base               string // folder of the base prompt model

	ingest *ingest.Service
	joiner *joiner.Service
	sink   *sink.Service
	pairer *pairer.Service
	// evidence and auditor are nil where no pairer runs.
	evidence *stage.Service
	auditor  *stage.Auditor
	jobs     trainerbridge.Inputs
	serving  *servingParts

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
		roles: map[control.Role]*controllog.Holder{},
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
		httpapi.Route{Method: http.MethodPost, Path: BackupPath, Scope: access.Admin, Handle: a.backup},
		httpapi.Route{Method: http.MethodGet, Path: ControlPath, Scope: access.Read, Handle: a.controlz})
}

// clientLogInterval is how often the same line of a Kafka client is written at most.
const clientLogInterval = 10 * time.Second

func (a *App) startKafka(ctx context.Context) error {
	a.kafka = a.cfg.Kafka.Config
	a.kafka.Log, a.kafka.Metrics = telemetry.NewThrottle(a.log, clientLogInterval, time.Now), a.registry
	if len(a.kafka.Brokers) == 0 {
		a.alone = true
		if err := a.startBroker(ctx); err != nil {
			return err
		}
	}
	if err := stream.CheckBroker(ctx, a.kafka); err != nil {
		return err
	}
	a.addresses.Kafka = strings.Join(a.kafka.Brokers, ",")
	if err := stream.EnsureTopics(ctx, a.kafka, schemas.Topics(), a.cfg.Kafka.Partitions, a.cfg.Kafka.Retention); err != nil {
		return err
	}
	if a.alone { // one broker with one disk: README.md says so
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

// startBroker starts what kafka.embedded names.
func (a *App) startBroker(ctx context.Context) error {
	if a.cfg.Kafka.Embedded == EmbeddedMemory {
		if !a.opt.Throwaway {
			return errors.New("kafka.embedded: memory keeps nothing beyond the process, and this folder is kept: want kafka")
		}
		m, err := stream.StartMemory(a.cfg.Kafka.EmbeddedPort)
		if err != nil {
			return err
		}
		a.log.Info().Str("component", "kafka").Msg("the broker is a stand-in in memory (kfake): what it holds ends with this process")
		a.actors.onStop("broker in memory", m.Close)
		a.kafka.Brokers = m.Brokers()
		return nil
	}
	program, err := setup.Kafka(a.opt.Home)
	if err != nil {
		return err
	}
	a.broker, err = broker.Start(ctx, broker.Config{
		Program: program, Dir: filepath.Join(a.opt.Dir, KafkaFolder), Port: a.cfg.Kafka.EmbeddedPort, Heap: a.cfg.Kafka.EmbeddedHeapBytes,
	}, a.log, a.registry)
	if err != nil {
		return err
	}
	a.actors.start("embedded kafka", func(ctx context.Context) error {
		defer a.broker.Stop()
		return a.broker.Wait(ctx)
	})
	a.kafka.Brokers = a.broker.Brokers()
	return nil
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
	a.control.Reports(a.work("reading of the control log"))
	if !a.needs(Pairer, Trainer, Serving) {
		return nil // the joiner's circuit breaker and the sink's leases need the control log alone
	}
	if a.ads, err = creativelog.Open(ctx, a.kafka, a.log, a.registry); err != nil {
		return err
	}
	a.actors.onStop("creative log", a.ads.Close)
	a.follow("creative log", a.ads)
	a.ads.Reports(a.work("reading of the creative log"))
	return nil
}

// followed is a log that this process has a copy of.
type followed interface {
	Changed() <-chan struct{}
	Done() <-chan struct{}          // closed when the copy follows no more
	Err() error                     // why the copy must not be relied on
	Wait(ctx context.Context) error // why it follows no more
}

// follow ends the process when its copy of a log can follow no more: only a start mends that (docs/adr/0075). While the copy follows
// and is not to be relied on, because a newer release has written to the log, the process is not ready and says so.
func (a *App) follow(name string, log followed) {
	gate := a.ready.Gate(name)
	a.actors.start("copy of the "+name, func(ctx context.Context) error {
		for {
			changed := log.Changed()
			gate.Report(log.Err())
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			case <-log.Done():
				gate.Report(log.Err()) // until the process has ended
				return log.Wait(ctx)
			}
		}
	})
}

// controlOptions name the process. With the embedded broker there is no other one: the next start goes on at once.
func (a *App) controlOptions() controllog.Options {
	if a.alone {
		return controllog.Options{Owner: "embedded"}
	}
	return controllog.Options{}
}

// lead claims a single-writer role for this process, until what is started after it has ended.
func (a *App) lead(role control.Role) *controllog.Holder {
	h := a.control.Hold(role)
	a.roles[role] = h
	h.Reports(a.work("lease of " + string(role)))
	a.actors.start("lease of "+string(role), h.Run)
	return h
}

// leads asks a holder whether this process leads.
type leads struct{ *controllog.Holder }

// IsLeader implements sink.Leader.
func (l leads) IsLeader() bool { return l.Held() != nil }
