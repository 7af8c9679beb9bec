package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"ctrloop/bench"
	"ctrloop/internal/progress"
	"ctrloop/serving/experiment/simulate"
)

// BenchExperimentsCmd is `ctrloop bench experiments`.
type BenchExperimentsCmd struct {
	Runs    int      `help:"Runs of each row of each table. Below 200 the intervals are too wide to tell much." default:"1000"`
	Seed    uint64   `help:"Draws everything; the same seed gives the same tables, whatever the number of workers." default:"1"`
	Only    []string `help:"Parts to run, of aa, small, lift, srm, guards, matching, bots, novelty, simpson and rollout; all by default." placeholder:"NAME"`
	Workers int      `help:"Goroutines that share the runs; 0 is one for each core." default:"0"`
	JSON    string   `name:"json" help:"Write the result to this file too; - is standard output, without the tables." placeholder:"FILE"`
}

// experimentsReport is the answer of `bench experiments --json`.
type experimentsReport struct {
	Machine bench.Machine    `json:"machine"`
	Options simulate.Options `json:"options"`
	Seconds float64          `json:"seconds"`
	Tables  []simulate.Table `json:"tables"`
	Broken  []string         `json:"broken"` // claims that do not hold
}

// Run simulates.
func (c *BenchExperimentsCmd) Run(ctx context.Context, out *output) error {
	rep := experimentsReport{Machine: bench.ThisMachine(), Broken: []string{}}
	bar := progress.Start(out.stderr, "bench experiments", "")
	rep.Options = simulate.Options{
		Runs: c.Runs, Seed: c.Seed, Only: c.Only, Workers: c.Workers,
		Progress: func(share float64, part string) { bar.Set(0, share, part) },
	}
	if c.Workers == 0 {
		rep.Options.Workers = rep.Machine.Procs
	}
	if err := rep.Options.Validate(); err != nil {
		return usageError{err}
	}
	start := time.Now()
	tables, err := simulate.Run(ctx, rep.Options)
	if err != nil {
		return err
	}
	bar.Done(0, "")
	rep.Tables, rep.Seconds = tables, time.Since(start).Seconds()
	rep.Broken = append(rep.Broken, simulate.Broken(tables)...)
	if err := out.writeJSON(c.JSON, rep); err != nil {
		return err
	}
	if c.JSON != "-" {
		fmt.Fprintf(out.stdout, "%d runs a row, seed %d; %s, %d procs, %.0f s with %d workers\n\n",
			c.Runs, c.Seed, rep.Machine.Platform, rep.Machine.Procs, rep.Seconds, rep.Options.Workers)
		if err := simulate.Print(out.stdout, tables); err != nil {
			return err
		}
	}
	if len(rep.Broken) > 0 {
		return withHint(
			errors.New("what is promised does not hold:\n"+strings.Join(rep.Broken, "\n")),
			"docs/validity.md says what each figure means; another --seed tells chance from a defect",
		)
	}
	return nil
}
