package app

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/ingest"
	"ctrloop/internal/httpapi"
	"ctrloop/internal/loopback"
	"ctrloop/internal/process"
	"ctrloop/schemas/control"
	"ctrloop/serving"
	"ctrloop/serving/console"
	"ctrloop/serving/console/overview"
	"ctrloop/serving/creatives"
	"ctrloop/serving/experiment"
	"ctrloop/serving/experiment/ramp"
	"ctrloop/serving/experiment/webhook"
	"ctrloop/serving/rollout"
)

// servingParts is serving with what surrounds it.
type servingParts struct {
	service    *serving.Service
	experiment *experiment.Service
	rollout    *rollout.Service
	looks      atomic.Int64
}

// countedLooks counts looks at experiments and passes them on.
type countedLooks struct {
	n    *atomic.Int64
	next experiment.LookSink
}

func (c countedLooks) RecordLook(ctx context.Context, l experiment.Look) error {
	err := c.next.RecordLook(ctx, l)
	c.n.Add(1)
	return err
}

func (a *App) startServing(ctx context.Context) error {
	if err := a.prepareBase(); err != nil {
		return err
	}
	replicas := a.cfg.Models.Servers
	if len(replicas) == 0 {
		address, err := a.startModelServer()
		if err != nil {
			return err
		}
		replicas = []string{"http://" + address}
	}
	cfg := a.cfg.Serving
	cfg.Replicas, cfg.Swap.BaseDir, cfg.Creatives.Dir = replicas, a.base, filepath.Join(a.opt.Dir, "creatives")
	parts := &servingParts{}
	drawer, err := a.openDrawer()
	if err != nil {
		return err
	}
	deps := serving.Deps{
		Control:   a.control,
		Swap:      a.lead(control.RoleSwap),
		Creatives: a.ads,
		Store:     a.store,
		Products:  a.catalog,
		Drawer:    drawer,
		Judge:     creatives.CatalogueRule{},
		Work:      a.work("states of versions"),
	}
	if parts.service, err = serving.New(cfg, deps, a.log, a.registry); err != nil {
		return err
	}
	a.serving = parts
	latency := &experiment.Latency{}
	parts.service.OnAnswer(latency.Observe)
	if err := a.registerBase(ctx, parts.service.BaseDigest()); err != nil {
		return err
	}
	a.actors.start("serving", parts.service.Run)

	ro, err := rollout.New(a.cfg.Rollout, a.lead(control.RoleRollout), parts.service, a.log)
	if err != nil {
		return err
	}
	parts.rollout = ro
	ro.Reports(a.work("start of experiments"))
	a.actors.start("rollout", ro.Run)

	hooks, err := webhook.New(a.cfg.Webhooks, a.control, filepath.Join(a.opt.Dir, WebhooksFile), nil, a.log, a.registry)
	if err != nil {
		return err
	}
	a.actors.start("webhooks", hooks.Run)
	source := experiment.Warehouse{DB: a.db}
	measured := experiment.Measured{Creatives: a.ads.All, Shown: source, Latency: latency}
	parts.experiment, err = experiment.New(a.cfg.Experiment, experiment.Deps{
		Control: a.control, Lead: a.lead(control.RoleExperiments), Source: source, Looks: countedLooks{&parts.looks, source},
		Wall: time.Now, EventNow: a.eventNow(),
		Health: measured, Metrics: measured, Reports: source, Hooks: hooks, Exposures: source,
		Work: a.work("decisions on experiments"),
	}, a.log, a.registry)
	if err != nil {
		return err
	}
	a.actors.start("experiments", parts.experiment.Run)

	page, err := console.New(a.cfg.Console, overview.New(a.overviewParts()), a.log, a.registry)
	if err != nil {
		return err
	}
	a.check("models", func(context.Context) error { return parts.service.Health(rollout.Logical) })
	a.addresses.API, err = a.listen("api", a.cfg.Listen.API, a.apiRoutes(page))
	return err
}

// apiRoutes are the calls and pages of the API's listener.
func (a *App) apiRoutes(page *console.Service) []httpapi.Route {
	return slices.Concat(page.Routes(), a.who.Routes(), a.serving.service.Routes(), a.serving.experiment.Routes())
}

// eventNow is the clock of the traffic that is being served.
func (a *App) eventNow() func() time.Time {
	if a.opt.EventNow != nil {
		return a.opt.EventNow
	}
	if a.cfg.Ingest.Clock == ingest.ClockWall {
		return time.Now
	}
	if a.joiner == nil {
		return (&eventClock{a: a}).now
	}
	return func() time.Time {
		var newest int64
		for _, p := range a.joiner.Ledger().Partitions {
			newest = max(newest, p.MaxImpressionMS)
		}
		if newest == 0 {
			return time.Time{} // not known: experiments then do not step
		}
		return time.UnixMilli(newest)
	}
}

// registerBase makes the base model a version, and the champion where there is none yet.
func (a *App) registerBase(ctx context.Context, digest string) error {
	version := rollout.Logical + "-" + digest[:12]
	st := a.control.State()
	if st.Models[version] == nil {
		m := control.Model{Version: version, Logical: rollout.Logical, Artifact: digest}
		note := "the base model that the servers run"
		err := a.append(ctx, "register-"+version, control.ModelRegistered, control.ModelEntity(version), note, m)
		if _, rejected := control.Rejected(err); err != nil && (!rejected || a.control.State().Models[version] == nil) {
			return err // rejected: another process was first
		}
	}
	if st.Routes[rollout.Logical].Champion != "" {
		return nil
	}
	p := control.Promotion{Logical: rollout.Logical, Version: version}
	note := "first champion: the base model"
	err := a.append(ctx, "first-"+version, control.ModelPromoted, control.RouteEntity(rollout.Logical), note, p)
	if _, rejected := control.Rejected(err); rejected && a.control.State().Routes[rollout.Logical].Champion != "" {
		return nil // another process was first
	}
	return err
}

// append writes a first command about an entity, under a fixed id: repeated, it is there already.
func (a *App) append(ctx context.Context, id string, typ control.Type, entity, note string, data any) error {
	e, err := control.NewEvent(id, typ, entity, 0, "ctrloop", note, time.Now(), data)
	if err != nil {
		return err
	}
	_, err = a.control.Append(ctx, e)
	return err
}

// startModelServer starts the embedded prompt-model server and returns its address.
func (a *App) startModelServer() (string, error) {
	return a.startPythonServer("prompt-model", a.cfg.Models.Threads, "ctrloop_trainer.serve",
		"--model", a.base, "--served-model-name", a.cfg.Serving.Swap.ServedBase)
}

// startPythonServer starts a supervised server of the trainer's package and returns its address, which stays the
// same when the server is restarted. It does not wait: whoever uses it is patient.
func (a *App) startPythonServer(name string, threads int, module string, args ...string) (string, error) {
	if err := a.preparePython(); err != nil {
		return "", err
	}
	// Should another process take the port before the server binds it, the server fails and the supervisor
	// says so.
	port, err := loopback.FreePort()
	if err != nil {
		return "", fmt.Errorf("%s server: %w", name, err)
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	client := &http.Client{Timeout: 2 * time.Second}
	ready := func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/health", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("health: %s", resp.Status)
		}
		return nil
	}
	spec := process.Spec{
		Name: name, Path: a.python, Threads: threads, LogLevel: zerolog.DebugLevel,
		Args: append([]string{"-m", module, "--host", "127.0.0.1", "--port", strconv.Itoa(port), "--threads", strconv.Itoa(threads)}, args...),
		Env:  []string{"PYTHONPATH=" + a.trainerDir, "PYTHONDONTWRITEBYTECODE=1", "HF_HUB_OFFLINE=1", "TOKENIZERS_PARALLELISM=false"},
	}
	launch := func(context.Context) (process.Spec, func(context.Context) error, error) { return spec, ready, nil }
	server, err := process.NewServer(name, process.DefaultServerConfig(), launch, a.log, a.registry)
	if err != nil {
		return "", err
	}
	a.actors.start(name+" server", server.Run)
	return address, nil
}

// CreativesReady says whether a version has all the creatives that it is to have.
func (a *App) CreativesReady(version string) bool { return a.serving.rollout.Ready(version) }

// ImageBackend names what draws creatives.
func (a *App) ImageBackend() string { return string(a.cfg.Images.Backend) }

// ServingStats of this process.
func (a *App) ServingStats() serving.Stats { return a.serving.service.Stats() }

// ExperimentLooks is the number of looks at experiments in this process that have ended.
func (a *App) ExperimentLooks() int64 { return a.serving.looks.Load() }

// Analyse looks at an experiment without changing anything.
func (a *App) Analyse(ctx context.Context, id string) (ramp.Verdict, error) {
	x := a.control.State().Experiments[id]
	if x == nil {
		return ramp.Verdict{}, fmt.Errorf("no experiment %s", id)
	}
	return a.serving.experiment.Analyse(ctx, *x)
}
