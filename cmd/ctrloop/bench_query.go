package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"ctrloop/bench"
	"ctrloop/internal/progress"
	"ctrloop/internal/setup"
	"ctrloop/internal/warehouse"
)

// BenchQueryCmd is `ctrloop bench query`.
type BenchQueryCmd struct {
	Labels int64  `help:"Impressions with a label." default:"100000000"`
	Users  int64  `help:"Users that see them." default:"2000000"`
	Days   int    `help:"Days of event time." default:"7"`
	Seed   uint64 `help:"Draws the labels." default:"1"`
	Runs   int    `help:"How often each question is asked; the median counts." default:"5"`
	Memory int64  `help:"Memory of the engine, bytes; the default is that of an instance." default:"2147483648"`
	Dir    string `help:"Folder for the engine's data, about 4 GB for 100 million labels, removed at the end. Default: the system's temporary one." type:"path" placeholder:"DIR"`
	DSN    string `name:"dsn" help:"Measure this ClickHouse instead; its database must have no labels." placeholder:"DSN"`
	JSON   string `name:"json" help:"Write the result to this file too; - is standard output, without the table." placeholder:"FILE"`
}

func (c *BenchQueryCmd) validate() error {
	var errs []error
	bad := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(c.Labels >= 10_000 && c.Labels <= 10_000_000_000, "--labels %d: want 10000 to 10000000000", c.Labels)
	bad(c.Users > 0, "--users %d: want more than 0", c.Users)
	bad(c.Days > 0 && c.Days <= 90, "--days %d: want 1 to 90", c.Days)
	bad(c.Runs > 0, "--runs %d: want more than 0", c.Runs)
	bad(c.Memory >= 1<<30, "--memory %d: want at least %d", c.Memory, 1<<30)
	if err := errors.Join(errs...); err != nil {
		return usageError{err}
	}
	return nil
}

// Run makes the labels and asks the questions.
func (c *BenchQueryCmd) Run(ctx context.Context, g *Globals, out *output) error {
	if err := c.validate(); err != nil {
		return err
	}
	dsn := c.DSN
	if dsn == "" {
		engine, err := c.engine(ctx, g, out)
		if err != nil {
			return err
		}
		defer func() {
			grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second) // nothing in it is kept
			defer cancel()
			_ = engine.Stop(grace)
			_ = os.RemoveAll(engine.Dir())
		}()
		dsn = engine.DSN()
	}
	db, err := warehouse.Open(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // what was to be kept was acknowledged
	if err := db.Migrate(ctx, warehouse.Options{}); err != nil {
		return err
	}
	bar := progress.Start(out.stderr, "bench query", "")
	rep, err := bench.Query(ctx, db, bench.QueryConfig{Labels: c.Labels, Users: c.Users, Days: c.Days, Seed: c.Seed, Runs: c.Runs},
		func(share float64, what string) { bar.Set(0, share, what) })
	if err != nil {
		return err
	}
	bar.Done(0, "")
	if err := out.writeJSON(c.JSON, rep); err != nil || c.JSON == "-" {
		return err
	}
	return rep.Print(out.stdout)
}

func (c *BenchQueryCmd) engine(ctx context.Context, g *Globals, out *output) (*warehouse.Engine, error) {
	home, err := setup.Home(g.Home)
	if err != nil {
		return nil, err
	}
	lib, err := setup.Library(home)
	if err != nil {
		return nil, err
	}
	dir, _, err := benchFolder(c.Dir)
	if err != nil {
		return nil, err
	}
	return warehouse.StartEngine(ctx, warehouse.EngineConfig{Lib: lib, Dir: dir, MaxMemoryBytes: c.Memory}, out.quietLogger(g))
}
