package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ctrloop/bench"
	"ctrloop/internal/progress"
	"ctrloop/internal/setup"
)

// BenchSinkCmd is `ctrloop bench sink`.
type BenchSinkCmd struct {
	Quick      bool   `help:"A smoke test with few labels: its figures mean little."`
	Rows       int    `help:"Labels." default:"4000000"`
	Partitions int32  `help:"Partitions of labels.v1." default:"4"`
	Seed       uint64 `help:"Draws the labels." default:"1"`
	Dir        string `help:"Folder for the engine's and the broker's data, removed at the end. Default: the system's temporary one." type:"path" placeholder:"DIR"`
	JSON       string `name:"json" help:"Write the result to this file too; - is standard output, without the table." placeholder:"FILE"`
}

// Run measures the sink.
func (c *BenchSinkCmd) Run(ctx context.Context, g *Globals, out *output) error {
	if c.Rows < 1 || c.Rows > 1<<30 || c.Partitions < 1 {
		return usageError{fmt.Errorf("--rows %d --partitions %d: want 1 to %d rows, at least 1 partition", c.Rows, c.Partitions, 1<<30)}
	}
	rows := c.Rows
	if c.Quick {
		rows = max(1, rows/quickDivisor)
	}
	home, err := setup.Home(g.Home)
	if err != nil {
		return err
	}
	lib, err := setup.Library(home)
	if err != nil {
		return err
	}
	dir, remove, err := benchFolder(c.Dir)
	if err != nil {
		return err
	}
	defer remove()
	bar := progress.Start(out.stderr, "bench sink", "")
	rep, err := bench.Sink(ctx, bench.SinkPlace{
		Dir: dir, Lib: lib, Partitions: c.Partitions, Broker: embeddedBroker(g), Log: out.quietLogger(g),
		Progress: func(what string) { bar.Set(0, 0, what) },
	}, bench.Traffic{Impressions: rows, Rate: 2000, ClickRate: 0.05, MeanDelay: 4 * time.Minute, Window: 30 * time.Minute, Seed: c.Seed})
	if err != nil {
		return err
	}
	bar.Done(0, "")
	if err := out.writeJSON(c.JSON, rep); err != nil {
		return err
	}
	if c.JSON != "-" {
		if err := rep.Print(out.stdout); err != nil {
			return err
		}
	}
	if n := rep.Wrong(); n != 0 {
		return errors.New("labels are missing or there twice: the figures are of a sink that does not work")
	}
	return nil
}
