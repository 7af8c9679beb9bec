package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"ctrloop/internal/warehouse"
)

// MigrateCmd is `ctrloop migrate`.
type MigrateCmd struct {
	storeFlags
	Cluster string        `help:"Name of the cluster in remote_servers: tables become replicated, with a Distributed table in front of each." placeholder:"NAME"`
	Plan    bool          `help:"Say what would be run and why; change nothing."`
	DryRun  bool          `help:"As --plan, with the statements."`
	Accept  []uint32      `help:"Number of an applied file whose text has changed and makes the same tables: record its new checksum." placeholder:"NNNN"`
	Window  time.Duration `help:"The join's window, for the horizon of mature labels; 0 keeps what the warehouse has."`
	JSON    bool          `name:"json" help:"Print the plan as JSON."`
}

// Run migrates, or says what it would do.
func (c *MigrateCmd) Run(ctx context.Context, g *Globals, out *output) error {
	look := c.Plan || c.DryRun
	db, done, err := c.open(ctx, g, out, !look)
	if err != nil {
		return err
	}
	defer done()
	opt := warehouse.Options{Cluster: c.Cluster, Window: c.Window, Accept: c.Accept}
	steps, err := db.Plan(ctx, opt)
	if err != nil {
		return err
	}
	if err := c.print(out, steps); err != nil {
		return err
	}
	if look {
		return nil
	}
	return db.Migrate(ctx, opt)
}

func (c *MigrateCmd) print(out *output, steps []warehouse.Step) error {
	if !c.DryRun {
		for i := range steps {
			steps[i].SQL = nil
		}
	}
	if c.JSON {
		return out.printJSON(steps)
	}
	t := tabwriter.NewWriter(out.stdout, 0, 0, 2, ' ', 0)
	for _, s := range steps {
		fmt.Fprintf(t, "%04d_%s\t%s\t%.12s\t%s\n", s.Version, s.Name, s.State, s.Checksum, s.Why)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, s := range steps {
		for _, q := range s.SQL {
			if _, err := fmt.Fprintf(out.stdout, "\n-- %04d_%s\n%s;\n", s.Version, s.Name, strings.TrimSpace(q)); err != nil {
				return err
			}
		}
	}
	return nil
}
