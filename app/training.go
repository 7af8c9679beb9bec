package app

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"ctrloop/internal/artifact"
	"ctrloop/schemas/control"
	trainerbridge "ctrloop/trainer-bridge"
	"ctrloop/trainer-bridge/runner"
	"ctrloop/trainer-bridge/runner/ray"
	"ctrloop/trainer-bridge/runner/slurm"
)

func (a *App) startTrainer(context.Context) error {
	cfg := a.cfg.Trainer
	if cfg.Runner == trainerbridge.RunLocal { // else Python is the cluster's
		if err := a.preparePython(); err != nil {
			return err
		}
	} else if err := a.unpackTrainer(); err != nil {
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
	metrics := trainerbridge.NewMetrics(cfg, a.registry)
	jobs, err := a.newRunner(cfg, metrics)
	if err != nil {
		return err
	}
	bridge, err := trainerbridge.New(cfg, trainerbridge.Deps{
		Lead: a.lead(control.RoleTrainer), Runner: jobs, Store: a.store, Base: digest, Log: a.log, Metrics: metrics,
		Work: a.work("training steps"),
	})
	if err != nil {
		return err
	}
	a.actors.start("trainer-bridge", bridge.Run)
	return nil
}

// newRunner makes what runs jobs, as trainer.runner says.
func (a *App) newRunner(cfg trainerbridge.Config, metrics *trainerbridge.Metrics) (trainerbridge.Runner, error) {
	in, err := a.jobInputs(cfg)
	if err != nil {
		return nil, err
	}
	a.jobs = in
	if cfg.Runner == trainerbridge.RunLocal {
		return &trainerbridge.Local{Inputs: in, Timeout: cfg.Timeout, StopGrace: cfg.StopGrace, Log: a.log}, nil
	}
	cluster, err := newCluster(cfg)
	if err != nil {
		return nil, err
	}
	return &trainerbridge.Remote{
		Inputs: in, Cluster: cluster, Paths: cfg.Cluster.Paths, Interval: cfg.Cluster.Interval, Timeout: cfg.Timeout,
		StartTimeout: cfg.Cluster.StartTimeout, LostAfter: cfg.Cluster.LostAfter, StopGrace: cfg.StopGrace,
		CallFailed: metrics.CallFailed, Log: a.log.With().Str("runner", string(cfg.Runner)).Logger(),
	}, nil
}

func newCluster(cfg trainerbridge.Config) (runner.Cluster, error) {
	switch cfg.Runner {
	case trainerbridge.RunRay:
		return ray.New(cfg.Ray), nil
	case trainerbridge.RunSlurm:
		return slurm.New(cfg.Slurm), nil
	case trainerbridge.RunLocal: // needs none
	}
	return nil, fmt.Errorf("trainer.runner: %q: no such runner", cfg.Runner)
}

// jobInputs writes what every job needs into the folder of jobs. A cluster sees that folder, and little else of this machine: what
// runs there is copied into it.
func (a *App) jobInputs(cfg trainerbridge.Config) (trainerbridge.Inputs, error) {
	work, err := filepath.Abs(filepath.Join(a.opt.Dir, JobsFolder))
	if err != nil {
		return trainerbridge.Inputs{}, fmt.Errorf("folder of jobs: %w", err)
	}
	grammar, products, err := WriteVocabulary(work, a.catalog, a.holdout)
	if err != nil {
		return trainerbridge.Inputs{}, err
	}
	exe, err := os.Executable()
	if err != nil {
		return trainerbridge.Inputs{}, fmt.Errorf("find this binary: %w", err)
	}
	python, trainer := a.python, a.trainerDir
	if cfg.Runner != trainerbridge.RunLocal {
		python = cfg.Cluster.Python
		if trainer, err = trainerbridge.Extract(work); err != nil {
			return trainerbridge.Inputs{}, err
		}
		if exe, err = trainerbridge.PlaceProgram(exe, work); err != nil {
			return trainerbridge.Inputs{}, err
		}
	}
	return trainerbridge.Inputs{
		Python: python, Trainer: trainer, Dir: work, Base: a.base, Grammar: grammar, Catalogue: products,
		Renderer: a.renderer(exe, python, trainer, grammar), Threads: cfg.Threads, Placement: cfg.Placement(), Resources: cfg.Resources,
		Store: a.store,
	}, nil
}
