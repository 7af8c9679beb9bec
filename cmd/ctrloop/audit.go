package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"ctrloop/app"
	"ctrloop/internal/warehouse"
)

// storeFlags name a warehouse.
type storeFlags struct {
	Dir string `help:"Folder of the instance." default:"ctrloop-data" env:"CTRLOOP_DIR" type:"path"`
	DSN string `name:"dsn" help:"This ClickHouse instead: clickhouse://user:password@host:port/database." env:"CTRLOOP_CLICKHOUSE_DSN"`
}

// open connects to the warehouse; with all rights the instance must be at rest, unless a DSN is given.
func (f storeFlags) open(ctx context.Context, g *Globals, out *output, allRights bool) (db *warehouse.DB, done func(), err error) {
	dsn, stop := f.DSN, func() {}
	if dsn == "" {
		if dsn, stop, err = warehouseAt(ctx, f.Dir, g, out, allRights); err != nil {
			return nil, nil, err
		}
	}
	if db, err = warehouse.Open(ctx, dsn); err != nil {
		stop()
		return nil, nil, err
	}
	return db, func() { _ = db.Close(); stop() }, nil
}

// AuditCmd is `ctrloop audit`.
type AuditCmd struct {
	storeFlags
	Since time.Duration `help:"Only this much of the newest impression time; 0 is all. It reads every label of that time."`
	JSON  bool          `name:"json" help:"Print JSON."`
}

// errAudit makes the command exit with 1.
var errAudit = errors.New("the warehouse differs from what the join wrote")

// Run prints the minutes that differ; there must be none.
func (c *AuditCmd) Run(ctx context.Context, g *Globals, out *output) error {
	db, done, err := c.open(ctx, g, out, false)
	if err != nil {
		return err
	}
	defer done()
	newest, err := db.NewestAudited(ctx)
	if err != nil {
		return err
	}
	var since time.Time
	if c.Since > 0 {
		since = newest.Add(-c.Since)
	}
	differ, err := db.Audit(ctx, since)
	if err != nil {
		return err
	}
	switch {
	case c.JSON:
		if differ == nil {
			differ = []warehouse.Mismatch{}
		}
		if err := out.printJSON(differ); err != nil {
			return err
		}
	case len(differ) == 0:
		_, err := fmt.Fprintf(
			out.stdout,
			"exact: every label of the join is in the warehouse once (newest minute %s)\n",
			newest.UTC().Format(time.RFC3339),
		)
		return err
	default:
		t := tabwriter.NewWriter(out.stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(t, "partition\tminute\tlabels wanted\tthere\tpositive wanted\tthere\t")
		for _, m := range differ {
			fmt.Fprintf(
				t,
				"%d\t%s\t%d\t%d\t%d\t%d\t\n",
				m.Partition,
				m.Minute.UTC().Format(time.RFC3339),
				m.WantLabels,
				m.Labels,
				m.WantPositive,
				m.Positive,
			)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if len(differ) == 0 {
		return nil
	}
	if _, err := os.Stat(filepath.Join(c.Dir, app.RefillFile)); c.DSN == "" && err == nil {
		return withHint(
			fmt.Errorf("%d minutes: %w", len(differ), errAudit),
			"the folder is a restored backup of a running instance: `ctrloop up --dir "+c.Dir+"` fills the warehouse up from its topics",
		)
	}
	return withHint(
		fmt.Errorf("%d minutes: %w", len(differ), errAudit),
		"while the sink runs, ask again in a minute: labels on their way count as missing",
	)
}
