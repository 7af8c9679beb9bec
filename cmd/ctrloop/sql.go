package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"ctrloop/app"
	"ctrloop/internal/setup"
	"ctrloop/internal/warehouse"
	"ctrloop/schemas/question"
)

// SQLCmd is `ctrloop sql`.
type SQLCmd struct {
	Query    string            `arg:"" optional:"" help:"The question in SQL; - reads it from standard input."`
	Question string            `help:"Ask a question of the book instead." placeholder:"NAME" xor:"book"`
	Param    map[string]string `help:"Parameter of the question: NAME=VALUE." placeholder:"NAME=VALUE" mapsep:"none"`
	List     bool              `help:"List the book of questions." xor:"book"`
	storeFlags
	JSON    bool          `name:"json" help:"Print JSON, one object a line: short for --format json."`
	Format  string        `help:"table, json (one object a line), csv, tsv or parquet." default:"table" enum:"table,json,csv,tsv,parquet"`
	Rows    int64         `help:"Most rows of the answer; 0 leaves the server's limit."`
	Timeout time.Duration `help:"Longest time the question may take; 0 leaves the server's limit."`
}

// stopGrace is how long an engine started for one question may take to stop.
const stopGrace = 10 * time.Second

// Run asks the warehouse.
func (c *SQLCmd) Run(ctx context.Context, g *Globals, out *output) error {
	switch {
	case c.JSON && c.Format != string(warehouse.FormatTable) && c.Format != string(warehouse.FormatJSON):
		return usageError{fmt.Errorf("--json and --format %s: one form at a time", c.Format)}
	case c.JSON:
		c.Format = string(warehouse.FormatJSON)
	}
	if c.List {
		return c.list(out)
	}
	query, params, err := c.ask()
	if err != nil {
		return err
	}
	dsn, stop, err := c.find(ctx, g, out, false)
	if err != nil {
		return err
	}
	defer stop()
	limits := warehouse.Limits{Rows: c.Rows, Timeout: c.Timeout}
	return warehouse.Ask(ctx, dsn, query, params, warehouse.Format(c.Format), out.stdout, limits)
}

// ask is the text to send, and the values of its parameters.
func (c *SQLCmd) ask() (query string, params map[string]string, err error) {
	switch {
	case c.Question != "" && c.Query != "":
		return "", nil, usageError{errors.New("give a question of the book or one of your own, not both")}
	case c.Question != "":
		q, err := question.Find(c.Question)
		if err == nil {
			params, err = q.Values(c.Param)
		}
		if err != nil {
			return "", nil, usageError{err}
		}
		return q.SQL, params, nil
	case c.Query == "":
		return "", nil, withHint(
			usageError{errors.New("there is no question")},
			"ctrloop --help lists the commands; give a question in SQL, or name one of `ctrloop sql --list` with --question",
		)
	case c.Query == "-":
		raw, err := io.ReadAll(os.Stdin)
		if err != nil {
			return "", nil, fmt.Errorf("read the question: %w", err)
		}
		return string(raw), c.Param, nil
	}
	return c.Query, c.Param, nil
}

// list prints the book.
func (c *SQLCmd) list(out *output) error {
	if warehouse.Format(c.Format) == warehouse.FormatJSON {
		return out.printJSON(question.All())
	}
	t := tabwriter.NewWriter(out.stdout, 0, 0, 2, ' ', 0)
	for _, q := range question.All() {
		fmt.Fprintf(t, "%s\t%s\n", q.Name, q.Text)
		for _, p := range q.Params {
			usual := ""
			if p.Default != nil {
				usual = " (" + *p.Default + ")"
			}
			fmt.Fprintf(t, "\t  --param %s=...  %s%s\n", p.Name, p.Meaning, usual)
		}
	}
	return t.Flush()
}

// warehouseAt returns the DSN of the ClickHouse of the instance in dir, started on its folder where nothing runs. A
// running one can be read only; with all rights it must be at rest.
func warehouseAt(ctx context.Context, dir string, g *Globals, out *output, allRights bool) (dsn string, stop func(), err error) {
	running, err := readInstance(dir)
	if err == nil && running.ClickHouse != "" {
		if db, err := warehouse.Open(ctx, running.ClickHouse); err == nil {
			_ = db.Close() // it was only asked whether it is there
			if allRights {
				return "", nil, withHint(fmt.Errorf("an instance is running on %s", dir), "stop it first: while it runs its warehouse can be read only")
			}
			return running.ClickHouse, func() {}, nil
		}
		// Whoever left the addresses was killed: the folder is at rest.
	} else if err != nil && !errors.Is(err, errNotRunning) {
		return "", nil, err
	}
	data := filepath.Join(dir, app.EngineFolder)
	if _, err := os.Stat(data); err != nil {
		return "", nil, withHint(fmt.Errorf("there is no warehouse in %s: %w", dir, err),
			"name the folder of an instance with --dir; `ctrloop demo --dir "+dir+"` makes one")
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
	dsn = engine.ReadOnlyDSN()
	if allRights {
		dsn = engine.DSN()
	}
	return dsn, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
		defer cancel()
		if err := engine.Stop(grace); err != nil {
			log := out.logger(g)
			log.Warn().Err(err).Msg("stop the engine")
		}
	}, nil
}
