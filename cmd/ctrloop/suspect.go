package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
	"ctrloop/pairer/evidence/stage"
)

// SuspectCmd is `ctrloop suspect`.
type SuspectCmd struct {
	Ls      SuspectLsCmd      `cmd:"" help:"List hours with suspect labels, with their rates and what was said of them."`
	Clear   SuspectClearCmd   `cmd:"" help:"Let suspect labels count again: in every figure, and in what is learned from."`
	Confirm SuspectConfirmCmd `cmd:"" help:"Say that suspect labels were looked at and stay out."`
	Reopen  SuspectReopenCmd  `cmd:"" help:"Take back what was said of suspect labels: they stay out."`
}

// suspectFlags name labels of a warehouse.
type suspectFlags struct {
	storeFlags
	From      time.Time `help:"Only hours that begin at this time of impressions or later." placeholder:"2026-03-01T10:00:00Z"`
	Until     time.Time `help:"Only hours that begin before this time." placeholder:"2026-03-01T12:00:00Z"`
	Product   string    `help:"Only this product."`
	Placement string    `help:"Only this placement."`
	Partition *uint16   `help:"Only this partition of labels.v1."`
	JSON      bool      `name:"json" help:"Print JSON."`
}

func (f suspectFlags) which() warehouse.Suspects {
	return warehouse.Suspects{From: f.From, Until: f.Until, Product: f.Product, Placement: f.Placement, Partition: f.Partition}
}

// bounded says whether anything was named.
func (f suspectFlags) bounded() bool {
	return !f.From.IsZero() || !f.Until.IsZero() || f.Product != "" || f.Placement != "" || f.Partition != nil
}

// SuspectLsCmd is `ctrloop suspect ls`.
type SuspectLsCmd struct {
	suspectFlags
	All bool `help:"Those of which something was said, too."`
}

// Run lists.
func (c *SuspectLsCmd) Run(ctx context.Context, g *Globals, out *output) error {
	db, done, err := c.open(ctx, g, out, false)
	if err != nil {
		return err
	}
	defer done()
	cells, err := db.Suspect(ctx, c.which())
	if err != nil {
		return err
	}
	shown := []warehouse.SuspectCell{}
	for _, s := range cells {
		if c.All || s.Verdict == string(warehouse.VerdictOpen) {
			shown = append(shown, s)
		}
	}
	if c.JSON {
		return out.printJSON(shown)
	}
	return printSuspects(out.stdout, shown, len(cells))
}

func printSuspects(w io.Writer, cells []warehouse.SuspectCell, all int) error {
	if len(cells) == 0 {
		_, err := fmt.Fprintf(w, "no suspect labels wait for somebody's word (%d hours have one, --all lists them)\n", all)
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "hour\tpartition\tproduct\tplacement\tlabels\tCTR\tusually\tverdict\tby\treason")
	for _, s := range cells {
		usual := "-"
		if s.Usual != nil {
			usual = fmt.Sprintf("%.3f %%", 100**s.Usual)
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%d\t%.3f %%\t%s\t%s\t%s\t%s\n", s.Hour.UTC().Format(time.RFC3339), s.Partition, s.Product, s.Placement,
			s.Labels, 100*s.CTR, usual, s.Verdict, s.By, s.Reason)
	}
	return t.Flush()
}

// reviewFlags say who says something of suspect labels, and why.
type reviewFlags struct {
	suspectFlags
	All   bool   `help:"All suspect labels, where nothing else is named."`
	Kafka string `help:"Brokers of evidence.v1, which is told too, HOST:PORT,.... Default: the instance's own." placeholder:"HOST:PORT"`
	By    string `help:"Who says so. Default: the user of this machine."`
	Note  string `help:"Why; it is kept with the labels." required:"" placeholder:"TEXT"`
}

// SuspectClearCmd is `ctrloop suspect clear`.
type SuspectClearCmd struct{ reviewFlags }

// Run clears.
func (c *SuspectClearCmd) Run(ctx context.Context, g *Globals, out *output) error {
	return c.review(ctx, g, out, warehouse.VerdictCleared, "count again")
}

// SuspectConfirmCmd is `ctrloop suspect confirm`.
type SuspectConfirmCmd struct{ reviewFlags }

// Run confirms.
func (c *SuspectConfirmCmd) Run(ctx context.Context, g *Globals, out *output) error {
	return c.review(ctx, g, out, warehouse.VerdictConfirmed, "stay out")
}

// SuspectReopenCmd is `ctrloop suspect reopen`.
type SuspectReopenCmd struct{ reviewFlags }

// Run takes back.
func (c *SuspectReopenCmd) Run(ctx context.Context, g *Globals, out *output) error {
	return c.review(ctx, g, out, warehouse.VerdictOpen, "are suspect as before")
}

// tell says on evidence.v1 what the warehouse was told. All cells that were named are told again: it is their last word.
func (f *reviewFlags) tell(ctx context.Context, db *warehouse.DB, kafka stream.Config, v warehouse.Verdict) error {
	cells, err := db.Suspect(ctx, f.which())
	if err != nil {
		return err
	}
	producer, err := tellEvidence(ctx, kafka, true)
	if err != nil || producer == nil {
		return err
	}
	defer producer.Close()
	return stage.TellReviews(ctx, producer, cells, v)
}

func (f *reviewFlags) review(ctx context.Context, g *Globals, out *output, v warehouse.Verdict, what string) error {
	if f.bounded() == f.All {
		return usageError{errors.New("name the labels by time, product, placement or partition, or all of them by --all")}
	}
	by := cmp.Or(f.By, userName())
	if by == "" {
		return usageError{errors.New("who says so? nobody knows the user of this machine: name somebody with --by")}
	}
	cfg, err := f.load(true)
	if err != nil {
		return err
	}
	running, err := f.beside(ctx)
	if err != nil {
		return err
	}
	db, done, err := f.open(ctx, g, out, true)
	if err != nil {
		return err
	}
	defer done()
	kafka, stop, known, err := f.topicsAt(ctx, cmp.Or(f.Kafka, running.Kafka), g.Home, cfg.Kafka.Config)
	if err != nil {
		return err
	}
	defer stop()
	r, err := db.Review(ctx, f.which(), v, by, f.Note)
	if errors.Is(err, warehouse.ErrNoSuspects) {
		return withHint(err, "`ctrloop suspect ls --all` lists those that are there")
	}
	if err != nil {
		return err
	}
	if known {
		if err := f.tell(ctx, db, kafka, v); err != nil {
			return withHint(err, "the warehouse has the review; say it again when the brokers answer")
		}
	} else {
		fmt.Fprintln(out.stderr, "evidence.v1 was not told, as no broker is known (--kafka): what is learned from it follows when this is said "+
			"again")
	}
	if f.JSON {
		return out.printJSON(r)
	}
	_, err = fmt.Fprintf(out.stdout, "%d labels in %d hours of a product, placement and partition %s\n", r.Labels, r.Cells, what)
	return err
}
