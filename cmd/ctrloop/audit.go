package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"ctrloop/app"
	"ctrloop/internal/config"
	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
	"ctrloop/joiner/sink"
	"ctrloop/schemas"
)

// storeFlags name a warehouse: the first of DSN, configuration and folder that says one.
type storeFlags struct {
	Dir    string `help:"Folder of the instance; what is needed of it is started where nothing runs." default:"ctrloop-data" env:"CTRLOOP_DIR" type:"path"`
	Config string `help:"Configuration of the instance, where that says the addresses of its stores." type:"existingfile" placeholder:"FILE"`
	DSN    string `name:"dsn" help:"This ClickHouse instead: clickhouse://user:password@host:port/database." env:"CTRLOOP_CLICKHOUSE_DSN"`
}

// load reads the configuration, and takes the warehouse's address from it unless another was given.
func (f *storeFlags) load(allRights bool) (app.Config, error) {
	cfg, err := config.Load(f.Config, app.Default())
	if err != nil {
		return cfg, err
	}
	if f.DSN == "" && !allRights {
		f.DSN = cfg.ClickHouse.ReadOnlyDSN
	}
	f.DSN = cmp.Or(f.DSN, cfg.ClickHouse.DSN)
	return cfg, nil
}

// find returns the address of the warehouse, which is started on the folder where nothing runs; with all rights the
// instance must be at rest, unless an address is given.
func (f *storeFlags) find(ctx context.Context, g *Globals, out *output, allRights bool) (dsn string, stop func(), err error) {
	if _, err := f.load(allRights); err != nil {
		return "", nil, err
	}
	if f.DSN != "" {
		return f.DSN, func() {}, nil
	}
	return warehouseAt(ctx, f.Dir, g, out, allRights)
}

// open connects to the warehouse.
func (f *storeFlags) open(ctx context.Context, g *Globals, out *output, allRights bool) (db *warehouse.DB, done func(), err error) {
	dsn, stop, err := f.find(ctx, g, out, allRights)
	if err != nil {
		return nil, nil, err
	}
	if db, err = warehouse.Open(ctx, dsn); err != nil {
		stop()
		return nil, nil, err
	}
	return db, func() { _ = db.Close(); stop() }, nil
}

// beside takes the address of an instance that runs on the folder, for somebody who writes: its engine can be written to by whoever
// may read the passwords there. Where none runs, or a server was named, nothing is taken.
func (f *storeFlags) beside(ctx context.Context) (running app.Addresses, err error) {
	i, err := readInstance(f.Dir)
	if f.DSN != "" || err != nil || i.ClickHouse == "" {
		return running, nil // a server that was named; or at rest, or open says what is wrong
	}
	db, err := warehouse.Open(ctx, i.ClickHouse)
	if err != nil {
		return running, nil // whoever left the addresses was killed
	}
	_ = db.Close() // it was only asked whether it is there
	f.DSN, err = warehouse.OwnerDSN(filepath.Join(f.Dir, app.EngineFolder), i.ClickHouse)
	if errors.Is(err, fs.ErrNotExist) {
		return running, withHint(fmt.Errorf("the instance on %s has a ClickHouse of its own", f.Dir),
			"name it with --dsn, by a user who may write")
	}
	return i, err
}

// topicsAt finds the brokers of the topics: those that were named (HOST:PORT,...), those of the configuration, or the embedded one
// of a folder at rest, which is started. known is false where nobody says any.
func (f *storeFlags) topicsAt(
	ctx context.Context, named, home string, kafka stream.Config,
) (_ stream.Config, stop func(), known bool, err error) {
	folder := filepath.Join(f.Dir, app.KafkaFolder)
	switch _, err := os.Stat(folder); {
	case named != "":
		kafka.Brokers = strings.Split(named, ",")
	case len(kafka.Brokers) > 0:
	case f.DSN == "" && err == nil:
		b, err := startBroker(ctx, folder, home)
		if err != nil {
			return kafka, nil, false, err
		}
		return b.Config(), b.Stop, true, nil
	default:
		return kafka, func() {}, false, nil
	}
	return kafka, func() {}, true, nil
}

// tellEvidence opens a writer to evidence.v1. It is nil where no brokers are known, or where they have no such topic: then nothing
// has been counted there that could be wrong.
func tellEvidence(ctx context.Context, kafka stream.Config, known bool) (*stream.Producer, error) {
	if !known {
		return nil, nil
	}
	has, err := stream.HasTopic(ctx, kafka, schemas.TopicEvidence)
	if err != nil || !has {
		return nil, err
	}
	return stream.NewProducer(kafka, stream.ProducerConfig{})
}

// AuditCmd is `ctrloop audit`.
type AuditCmd struct {
	storeFlags
	Kafka string        `help:"Brokers of the topics that the warehouse is filled from, HOST:PORT,.... Default: the instance's own." placeholder:"HOST:PORT"`
	Since time.Duration `help:"Only this much of the newest impression time; 0 is all. It reads every label of that time."`
	Wait  time.Duration `help:"How long to wait for rows that are on their way." default:"1m"`
	JSON  bool          `name:"json" help:"Print JSON."`
}

// errAudit and errOnTheWay make the command exit with 1.
var (
	errAudit    = errors.New("the warehouse differs from what the join wrote")
	errOnTheWay = errors.New("rows are on their way, so nobody can tell yet")
)

// Run prints the minutes that differ; there must be none.
func (c *AuditCmd) Run(ctx context.Context, g *Globals, out *output) error {
	cfg, err := c.load(false)
	if err != nil {
		return err
	}
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
	stop, asked := func() {}, false
	defer func() { stop() }()
	way := func() (way *sink.Way, err error) {
		way, stop, err = c.way(ctx, g.Home, cfg)
		asked = way != nil
		return way, err
	}
	patience := c.Wait
	if c.DSN == "" {
		if _, err := readInstance(c.Dir); errors.Is(err, errNotRunning) {
			patience = 0 // at rest nothing comes
		}
	}
	differ, left, err := sink.AuditOnce(ctx, db, way, since, patience)
	if err != nil {
		return err
	}
	if differ == nil {
		differ = []warehouse.Mismatch{}
	}
	switch {
	case c.JSON:
		err = out.printJSON(differ)
	case len(differ) == 0:
		_, err = fmt.Fprintf(out.stdout, "exact: every label of the join is in the warehouse once (newest minute %s)\n",
			newest.UTC().Format(time.RFC3339))
	default:
		err = printMismatches(out.stdout, differ)
	}
	if err != nil || len(differ) == 0 {
		return err
	}
	return c.verdict(len(differ), left, asked)
}

// verdict says what minutes that differ mean.
func (c *AuditCmd) verdict(minutes int, left sink.Left, asked bool) error {
	_, gone := os.Stat(filepath.Join(c.Dir, app.RefillFile))
	if restored := c.DSN == "" && gone == nil; restored {
		return withHint(fmt.Errorf("%d minutes: %w", minutes, errAudit),
			"the folder is a restored backup of a running instance: `ctrloop up --dir "+c.Dir+"` fills the warehouse up from its topics")
	}
	if left.Rows() > 0 {
		return withHint(
			fmt.Errorf("%d minutes differ, and %d rows of %s and %s are not in the warehouse: %w",
				minutes, left.Rows(), schemas.TopicLabels, schemas.TopicAudit, errOnTheWay),
			"is a sink running, and is it behind (`ctrloop status`)? ask again when they have come, or with a longer --wait",
		)
	}
	err := fmt.Errorf("%d minutes: %w", minutes, errAudit)
	if !asked {
		return withHint(err, "no broker was asked for what is on its way: name them with --kafka or --config")
	}
	return withHint(err, "nothing of it is on its way: see docs/sink.md, three belts")
}

// way looks at the brokers that the warehouse is filled from; nil where none are known.
func (c *AuditCmd) way(ctx context.Context, home string, cfg app.Config) (way *sink.Way, stop func(), err error) {
	conf, stop := cfg.Sink, func() {}
	conf.Kafka = cfg.Kafka.Config
	if c.Kafka != "" {
		conf.Kafka.Brokers = strings.Split(c.Kafka, ",")
	}
	if len(conf.Kafka.Brokers) == 0 {
		if c.DSN != "" { // whatever is in the folder need not be what fills it
			return nil, stop, nil
		}
		if conf.Kafka, stop, err = brokersAt(ctx, c.Dir, home, conf.Kafka); err != nil {
			return nil, func() {}, err
		}
	}
	return sink.NewWay(conf), stop, nil
}

func printMismatches(w io.Writer, differ []warehouse.Mismatch) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "partition\tminute\tlabels wanted\tthere\tpositive wanted\tthere\t")
	for _, m := range differ {
		fmt.Fprintf(t, "%d\t%s\t%d\t%d\t%d\t%d\t\n",
			m.Partition, m.Minute.UTC().Format(time.RFC3339), m.WantLabels, m.Labels, m.WantPositive, m.Positive)
	}
	return t.Flush()
}
