package main

import (
	"context"
	"fmt"

	"ctrloop/app"
	"ctrloop/internal/config"
	"ctrloop/internal/setup"
)

// UpCmd is `ctrloop up`.
type UpCmd struct {
	Target string `help:"Services to run in this process: all, or some of ingest, joiner, sink, pairer, trainer, serving, separated by commas." default:"all"`
	Config string `help:"Configuration file; without one everything runs embedded." type:"existingfile" placeholder:"FILE"`
	Dir    string `help:"Folder for all state." default:"ctrloop-data" env:"CTRLOOP_DIR" type:"path"`
}

// Run starts the services and waits for a signal.
func (c *UpCmd) Run(ctx context.Context, g *Globals, out *output) error {
	targets, err := app.ParseTargets(c.Target)
	if err != nil {
		return usageError{err}
	}
	cfg, err := config.Load(c.Config, app.Default())
	if err != nil {
		return err
	}
	home, err := setup.Home(g.Home)
	if err != nil {
		return err
	}
	a, err := app.Start(ctx, app.Options{Config: cfg, Targets: targets, Dir: c.Dir, Home: home, Version: version, Log: out.logger(g)})
	if err != nil {
		return err
	}
	defer a.Stop()
	addr := a.Addresses()
	for _, l := range []struct{ name, url string }{
		{"console", addr.API}, {"events", addr.Edge}, {"admin", addr.Admin},
	} {
		if l.url != "" {
			fmt.Fprintf(out.stderr, "%-8s http://%s\n", l.name, l.url)
		}
	}
	return a.Wait(ctx)
}
