package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"ctrloop/app"
	"ctrloop/app/trace"
	"ctrloop/internal/warehouse"
	"ctrloop/schemas"
)

// TraceCmd is `ctrloop trace`.
type TraceCmd struct {
	ID string `arg:"" help:"The impression: a UUIDv7 or a ULID."`
	storeFlags
	Slack      time.Duration `help:"How long after the end of its window records are still looked for." default:"1h"`
	Everywhere bool          `help:"Read the topics whole: for replayed logs, whose raw records have other times."`
	JSON       bool          `name:"json" help:"Print JSON."`
}

// Run looks the impression up.
func (c *TraceCmd) Run(ctx context.Context, g *Globals, out *output) error {
	id, err := schemas.ParseImpressionID(c.ID)
	if err != nil {
		return usageError{fmt.Errorf("%q: %w", c.ID, err)}
	}
	if c.Slack < 0 {
		return usageError{fmt.Errorf("--slack %v: want 0 or more", c.Slack)}
	}
	cfg, err := c.load(false)
	if err != nil {
		return err
	}
	kafka, stop, err := brokersAt(ctx, c.Dir, g.Home, cfg.Kafka.Config)
	if err != nil {
		return err
	}
	defer stop()
	finder := trace.Finder{
		Kafka: kafka, Group: cfg.Joiner.Group, Window: cfg.Joiner.Window, Bucket: cfg.Joiner.Bucket,
		KeepOneNegativeIn: cfg.Joiner.KeepOneNegativeIn,
		Slack:             c.Slack, Everywhere: c.Everywhere, Now: time.Now(),
	}
	if c.Config == "" {
		window, err := c.runningWindow(ctx)
		if err != nil {
			return err
		}
		finder.Window = cmp.Or(window, finder.Window)
	}
	rep, err := finder.Trace(ctx, id)
	if err != nil {
		return err
	}
	if err := c.rows(ctx, g, out, id, &rep); err != nil {
		return err
	}
	if c.JSON {
		err = out.printJSON(rep)
	} else {
		err = printTrace(out.stdout, rep)
	}
	if err == nil && rep.State == trace.Unknown && (rep.Warehouse == nil || len(*rep.Warehouse) == 0) {
		err = withHint(
			fmt.Errorf("%w: %s", trace.ErrUnknown, rep.ID),
			"widen the search with --slack or --everywhere; is --dir or --config that of the right instance?",
		)
	}
	return err
}

// runningWindow is the join's window as the instance on the folder has it; 0 where none runs or its warehouse does not say.
func (c *TraceCmd) runningWindow(ctx context.Context) (time.Duration, error) {
	running, err := readInstance(c.Dir)
	if err != nil || running.ClickHouse == "" {
		return 0, nil // at rest, or without a warehouse of its own
	}
	db, err := warehouse.Open(ctx, running.ClickHouse)
	if err != nil {
		return 0, nil // whoever left the addresses was killed
	}
	defer func() { _ = db.Close() }() // it was only read from
	return db.Window(ctx)
}

// rows asks the warehouse, where there is one.
func (c *TraceCmd) rows(ctx context.Context, g *Globals, out *output, id schemas.ImpressionID, rep *trace.Report) error {
	if c.DSN == "" {
		if _, err := os.Stat(filepath.Join(c.Dir, app.EngineFolder)); err != nil {
			return nil // this instance has none
		}
	}
	db, done, err := c.open(ctx, g, out, false)
	if err != nil {
		return err
	}
	defer done()
	return rep.Ask(ctx, db, id)
}

// printTrace shows a report on one screen.
func printTrace(w io.Writer, rep trace.Report) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "impression\t%s\n", rep.ID)
	fmt.Fprintf(t, "event time\t%s\n", rep.EventTime.Format(time.RFC3339Nano))
	fmt.Fprintf(t, "window closes\t%s\n", rep.ClosesAt.Format(time.RFC3339Nano))
	fmt.Fprintf(t, "state\t%s: %s\n", rep.State, rep.Explanation)
	if rep.From.IsZero() {
		fmt.Fprintln(t, "searched\teverything")
	} else {
		fmt.Fprintf(t, "searched\trecords of %s to %s\n", rep.From.Format(time.RFC3339), rep.To.Format(time.RFC3339))
	}
	for _, s := range rep.Steps {
		fmt.Fprintf(t, "%s\t%s/%d@%d\t%s\n", s.What, s.Topic, s.Partition, s.Offset, details(s.Detail))
	}
	switch {
	case rep.Warehouse == nil:
		fmt.Fprintln(t, "warehouse\tnot asked: this instance has none")
	case len(*rep.Warehouse) == 0:
		fmt.Fprintln(t, "warehouse\tno row")
	default:
		for _, r := range *rep.Warehouse {
			fmt.Fprintf(t, "warehouse\t%s/%d@%d\tkind=%s version=%d clicked=%d clicks=%d inserted_at=%s\n",
				schemas.TopicLabels, r.Partition, r.Offset, r.Kind, r.Version, r.Clicked, r.Clicks, r.InsertedAt.UTC().Format(time.RFC3339))
		}
	}
	for _, r := range rep.Refused {
		fmt.Fprintf(t, "warehouse\t%s/%d@%d\t%s: %s %s\n", r.Topic, r.Partition, r.Offset, r.Kind, r.Reason, r.Detail)
	}
	return t.Flush()
}

func details(d map[string]any) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(d)) {
		switch v := d[name].(type) {
		case time.Time:
			parts = append(parts, name+"="+v.Format(time.RFC3339))
		case string:
			if v != "" {
				parts = append(parts, name+"="+v)
			}
		default:
			if raw, ok := v.(interface{ MarshalJSON() ([]byte, error) }); ok {
				if text, err := raw.MarshalJSON(); err == nil {
					parts = append(parts, string(text))
					continue
				}
			}
			parts = append(parts, fmt.Sprintf("%s=%v", name, v))
		}
	}
	return strings.Join(parts, " ")
}
