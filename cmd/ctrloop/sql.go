package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"ctrloop/cmd/ctrloop/app"
	"ctrloop/internal/setup"
	"ctrloop/internal/warehouse"
)

// SQLCmd is `ctrloop sql`.
type SQLCmd struct {
	Query   string        `arg:"" help:"The question; - reads it from standard input."`
	Dir     string        `help:"Folder of the instance; its engine is started for the question where nothing runs." default:"ctrloop-data" env:"CTRLOOP_DIR" type:"path"`
	DSN     string        `name:"dsn" help:"Ask this ClickHouse instead: clickhouse://user:password@host:port/database." env:"CTRLOOP_CLICKHOUSE_DSN"`
	Format  string        `help:"table, json (one object a line), csv, tsv or parquet." default:"table" enum:"table,json,csv,tsv,parquet"`
	Rows    int64         `help:"Most rows of the answer; 0 leaves the server's limit."`
	Timeout time.Duration `help:"Longest time the question may take; 0 leaves the server's limit."`
}

// stopGrace is how long an engine started for one question may take to stop.
const stopGrace = 10 * time.Second

// Run asks the warehouse.
func (c *SQLCmd) Run(ctx context.Context, g *Globals, out *output) error {
	query := c.Query
	if query == "-" {
		raw, err := io.ReadAll(os.Stdin)
		if err != nil {
			return fmt.Errorf("read the question: %w", err)
		}
		query = string(raw)
	}
	dsn := c.DSN
	if dsn == "" {
		var stop func() error
		var err error
		if dsn, stop, err = c.warehouse(ctx, g, out); err != nil {
			return err
		}
		defer func() {
			if err := stop(); err != nil {
				log := out.logger(g)
				log.Warn().Err(err).Msg("stop the engine")
			}
		}()
	}
	limits := warehouse.Limits{Rows: c.Rows, Timeout: c.Timeout}
	return warehouse.SQL(ctx, dsn, query, warehouse.Format(c.Format), out.stdout, limits)
}

// warehouse returns the DSN of the instance's ClickHouse, started on its folder where nothing runs.
func (c *SQLCmd) warehouse(ctx context.Context, g *Globals, out *output) (dsn string, stop func() error, err error) {
	running, err := readInstance(c.Dir)
	if err == nil && running.ClickHouse != "" {
		if db, err := warehouse.Open(ctx, running.ClickHouse); err == nil {
			_ = db.Close() // it was only asked whether it is there
			return running.ClickHouse, func() error { return nil }, nil
		}
		// Whoever left the addresses was killed: the folder is at rest.
	} else if err != nil && !errors.Is(err, errNotRunning) {
		return "", nil, err
	}
	data := filepath.Join(c.Dir, app.EngineFolder)
	if _, err := os.Stat(data); err != nil {
		return "", nil, withHint(fmt.Errorf("there is no warehouse in %s: %w", c.Dir, err),
			"name the folder of an instance with --dir; `ctrloop demo --dir "+c.Dir+"` makes one")
	}
	home, err := setup.Home(g.Home)
	if err != nil {
		return "", nil, err
	}
	lib, err := setup.Library(home)
	if err != nil {
		return "", nil, err
	}
	engine, err := warehouse.StartEngine(ctx, warehouse.EngineConfig{Lib: lib, Dir: data}, out.logger(g))
	if errors.Is(err, warehouse.ErrInUse) {
		return "", nil, withHint(err, "another ctrloop works on this folder; wait for it to start or to end")
	}
	if err != nil {
		return "", nil, err
	}
	return engine.ReadOnlyDSN(), func() error {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
		defer cancel()
		return engine.Stop(grace)
	}, nil
}
