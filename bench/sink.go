package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/broker"
	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
	"ctrloop/internal/warehouse/query"
	"ctrloop/joiner/sink"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// Targets of the sink, rows a second and core.
const (
	SinkTarget = 500_000
	SinkAim    = 1_000_000
)

// SinkPlace is where labels are brought from and to.
type SinkPlace struct {
	Dir        string // for engine and broker, empty
	Lib        string // libchdb
	Partitions int32
	// Broker starts the embedded broker in a folder.
	Broker   func(ctx context.Context, dir string) (*broker.Broker, error)
	Log      zerolog.Logger
	Progress func(what string) // nil: nobody is told
}

// SinkCost is what one way of bringing labels into the engine took.
type SinkCost struct {
	Rows        int64   `json:"rows"`
	Inserts     int64   `json:"inserts"`
	WallSeconds float64 `json:"wall_seconds"`
	// GoCPUSeconds of this process: the sink. The broker is a process of its own, and is not counted.
	GoCPUSeconds float64 `json:"go_cpu_seconds"`
	// InsertCPUSeconds of the engine's threads in the inserts alone (system.query_log).
	InsertCPUSeconds float64 `json:"insert_cpu_seconds"`
	// EngineCPUSeconds of the engine's process until its last merge was over: inserts, merges, and its own upkeep.
	EngineCPUSeconds float64 `json:"engine_cpu_seconds"`
	BytesPerRow      float64 `json:"bytes_per_row"` // compressed, merged as far as the engine did by itself
	// Parts of labels that are left then: merging them is a cost that comes later.
	Parts int64 `json:"parts"`
	Wrong int64 `json:"wrong"` // rows missing or there twice
}

// PerGoCore is rows a CPU second of this process.
func (c SinkCost) PerGoCore() float64 { return ratio(float64(c.Rows), c.GoCPUSeconds) }

// PerCore is rows a CPU second of both processes, merges included.
func (c SinkCost) PerCore() float64 {
	return ratio(float64(c.Rows), c.GoCPUSeconds+c.EngineCPUSeconds)
}

// perRow in microseconds.
func (c SinkCost) perRow(s float64) float64 { return ratio(1e6*s, float64(c.Rows)) }

// SinkReport is the result of `ctrloop bench sink`.
type SinkReport struct {
	Machine Machine `json:"machine"`
	Rows    int     `json:"rows"`
	Target  float64 `json:"target_rows_per_second_and_core"`
	// Alone: records in memory, decoded and inserted by one goroutine.
	Alone SinkCost `json:"alone"`
	// Broker: the whole service, out of the embedded broker in this process.
	Broker SinkCost `json:"broker"`
	// Met: the target by the sink's own work, and by both processes together.
	MetGo   bool `json:"met_per_go_core"`
	MetBoth bool `json:"met_both"`
}

// Sink measures how labels get into the embedded engine.
func Sink(ctx context.Context, p SinkPlace, t Traffic) (rep SinkReport, err error) {
	rep = SinkReport{Machine: ThisMachine(), Rows: t.Impressions, Target: SinkTarget}
	engine, err := warehouse.StartEngine(ctx, warehouse.EngineConfig{Lib: p.Lib, Dir: filepath.Join(p.Dir, "engine")}, p.Log)
	if err != nil {
		return rep, err
	}
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		defer cancel()
		err = errors.Join(err, engine.Stop(stop))
	}()
	db, err := warehouse.Open(ctx, engine.DSN())
	if err != nil {
		return rep, err
	}
	defer func() { _ = db.Close() }()
	if err := db.Migrate(ctx, warehouse.Options{}); err != nil {
		return rep, err
	}
	m := sinkMeter{db: db, engine: engine, rows: int64(t.Impressions)}
	if rep.Alone, err = m.measure(ctx, func() (float64, error) { return p.alone(ctx, db, t) }); err != nil {
		return rep, err
	}
	if err := db.Exec(ctx, query.Text("bench_empty")); err != nil {
		return rep, err
	}
	b, err := p.load(ctx, t)
	if err != nil {
		return rep, err
	}
	defer b.Stop()
	if rep.Broker, err = m.measure(ctx, func() (float64, error) { return p.service(ctx, db, b.Config()) }); err != nil {
		return rep, err
	}
	rep.MetGo, rep.MetBoth = rep.Alone.PerGoCore() >= SinkTarget, rep.Alone.PerCore() >= SinkTarget
	return rep, nil
}

func (p SinkPlace) say(format string, args ...any) {
	if p.Progress != nil {
		p.Progress(fmt.Sprintf(format, args...))
	}
}

// label is the join's verdict on impression i, in the order of event time and in transactions of 250 ms.
func (t Traffic) label(i int, partitions int32) *stream.Record {
	r := t.impression(i)
	l := &eventpb.Label{
		Impression:  r.Value,
		Kind:        eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE,
		WatermarkMs: t.timeMS(i) / 250 * 250,
		Version:     1,
		Weight:      1,
	}
	if t.positive(i) {
		l.Kind, l.Clicked, l.Clicks, l.ClickDelayMs = eventpb.LabelKind_LABEL_KIND_POSITIVE, true, 1, t.delayMS(i)
	}
	return &stream.Record{Topic: schemas.TopicLabels, Partition: int32(i) % partitions, Key: r.Key, Timestamp: r.Timestamp, Value: encode(l)}
}

// memory is a source of labels of one partition without a broker: what is produced into it is polled next.
type memory struct {
	waiting []*stream.Record
	at      stream.Committed
}

func (m *memory) Poll(ctx context.Context, wait time.Duration) (stream.Batch, error) {
	rs := m.waiting
	if m.waiting = nil; len(rs) > 0 {
		return stream.Batch{Partitions: []stream.PartitionBatch{{Topic: schemas.TopicLabels, Records: rs}}}, nil
	}
	select {
	case <-ctx.Done():
		return stream.Batch{}, ctx.Err()
	case <-time.After(wait):
		return stream.Batch{}, nil
	}
}

func (m *memory) Commit(_ context.Context, at map[stream.TopicPartition]stream.Committed) error {
	m.at = at[stream.TopicPartition{Topic: schemas.TopicLabels}]
	return nil
}

func (m *memory) Committed(context.Context) (map[stream.TopicPartition]stream.Committed, error) {
	return map[stream.TopicPartition]stream.Committed{{Topic: schemas.TopicLabels}: m.at}, nil
}

func (m *memory) Read(context.Context, int32, int64, int64, func(*stream.Record) error) error {
	return nil
}

func (m *memory) Close() {}

// alone feeds a session of the sink from memory and returns the seconds of CPU that making the labels took.
func (p SinkPlace) alone(ctx context.Context, db sink.Warehouse, t Traffic) (making float64, err error) {
	cfg := sink.Default()
	s, err := sink.New(cfg, db, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		return 0, err
	}
	from := &memory{at: stream.Committed{LeaderEpoch: -1}}
	session := s.Session(from, "bench")
	session.Assign(0)
	for next := 0; from.at.Offset < int64(t.Impressions); {
		p.say("alone %3.0f %%", 100*float64(next)/float64(t.Impressions))
		was := selfCPU()
		for end := min(next+cfg.MaxRows, t.Impressions); next < end; next++ {
			r := t.label(next, 1)
			r.Offset = int64(next)
			from.waiting = append(from.waiting, r)
		}
		making += selfCPU() - was
		if err := session.Step(ctx); err != nil {
			return making, err
		}
	}
	return making, nil
}

// load starts a broker and fills it.
func (p SinkPlace) load(ctx context.Context, t Traffic) (*broker.Broker, error) {
	b, err := p.Broker(ctx, filepath.Join(p.Dir, "broker"))
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*broker.Broker, error) { b.Stop(); return nil, err }
	if err := stream.EnsureTopics(ctx, b.Config(), schemas.Topics(), p.Partitions, -1); err != nil {
		return fail(err)
	}
	producer, err := stream.NewProducer(b.Config(), stream.ProducerConfig{Linger: 20 * time.Millisecond})
	if err != nil {
		return fail(err)
	}
	defer producer.Close()
	for from := 0; from < t.Impressions; from += chunk {
		p.say("load %3.0f %%", 100*float64(from)/float64(t.Impressions))
		rs := make([]*stream.Record, 0, chunk)
		for i := from; i < min(from+chunk, t.Impressions); i++ {
			rs = append(rs, t.label(i, p.Partitions))
		}
		if err := producer.Produce(ctx, rs...); err != nil {
			return fail(err)
		}
	}
	return b, nil
}

// service runs the sink until nothing is left.
func (p SinkPlace) service(ctx context.Context, db sink.Warehouse, kafka stream.Config) (float64, error) {
	cfg := sink.Default()
	cfg.Kafka = kafka
	s, err := sink.New(cfg, db, p.Log, prometheus.NewRegistry())
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for tick := time.NewTicker(200 * time.Millisecond); ; {
		select {
		case err := <-done:
			return 0, errors.Join(err, ctx.Err())
		case <-tick.C:
		}
		lag, err := s.Lag(ctx)
		if err != nil {
			return 0, err
		}
		p.say("%d labels left", lag)
		if lag == 0 {
			tick.Stop()
			cancel()
			return 0, <-done
		}
	}
}

// sinkMeter reads the clocks of both processes.
type sinkMeter struct {
	db     *warehouse.DB
	engine *warehouse.Engine
	rows   int64
}

// measure takes the cost of work; what work returns is CPU of this process that is not the sink's.
func (m sinkMeter) measure(ctx context.Context, work func() (float64, error)) (c SinkCost, err error) {
	var began time.Time
	if err := m.db.QueryRow(ctx, query.Text("bench_now")).Scan(&began); err != nil {
		return c, err
	}
	w := startWatch(m.engine.PID())
	beside, err := work()
	if err != nil {
		return c, err
	}
	cost := w.read(m.rows)
	if err := m.mergesOver(ctx); err != nil {
		return c, err
	}
	c = SinkCost{
		Rows:             m.rows,
		WallSeconds:      cost.WallSeconds,
		GoCPUSeconds:     cost.CPUSeconds - beside,
		EngineCPUSeconds: w.read(0).BrokerCPUSeconds,
	}
	if err := m.db.Exec(ctx, query.Text("bench_flush")); err != nil {
		return c, err
	}
	var inserts, there uint64
	err = m.db.QueryRow(ctx, query.Text("bench_inserts"), began).Scan(&inserts, &c.InsertCPUSeconds)
	if err != nil {
		return c, err
	}
	c.Inserts = int64(inserts)
	if err := m.db.QueryRow(ctx, query.Text("labels")).Scan(&there); err != nil {
		return c, err
	}
	c.Wrong = max(int64(there)-m.rows, m.rows-int64(there))
	return c, m.db.QueryRow(ctx, query.Text("bench_parts")).Scan(&c.BytesPerRow, &c.Parts)
}

// mergesOver waits until the engine has nothing to merge: their cost belongs to the inserts.
func (m sinkMeter) mergesOver(ctx context.Context) error {
	for quiet := 0; quiet < 4; {
		var n uint64
		if err := m.db.QueryRow(ctx, query.Text("bench_merges")).Scan(&n); err != nil {
			return err
		}
		if quiet++; n > 0 {
			quiet = 0
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
	return nil
}

// Print writes the table.
func (r SinkReport) Print(w io.Writer) error {
	fmt.Fprintf(w, "%d labels into the embedded engine; %s, %d procs\n\n", r.Rows, r.Machine.Platform, r.Machine.Procs)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "\tsink alone\twith broker\t\n")
	line := func(name string, f func(SinkCost) string) {
		fmt.Fprintf(t, "%s\t%s\t%s\t\n", name, f(r.Alone), f(r.Broker))
	}
	line("rows/s", func(c SinkCost) string { return rate(ratio(float64(c.Rows), c.WallSeconds)) })
	line("Go, CPU µs a row", func(c SinkCost) string { return seconds(c.perRow(c.GoCPUSeconds)) })
	line("engine, inserts, CPU µs a row", func(c SinkCost) string { return seconds(c.perRow(c.InsertCPUSeconds)) })
	line("engine, all, CPU µs a row", func(c SinkCost) string { return seconds(c.perRow(c.EngineCPUSeconds)) })
	line("rows/s per Go core", func(c SinkCost) string { return rate(c.PerGoCore()) })
	line("rows/s per core, both", func(c SinkCost) string { return rate(c.PerCore()) })
	line("rows an insert", func(c SinkCost) string { return count(ratioInt(c.Rows, int(c.Inserts))) })
	line("parts left", func(c SinkCost) string { return count(c.Parts) })
	line("bytes a row", func(c SinkCost) string { return fmt.Sprintf("%.1f", c.BytesPerRow) })
	line("wrong rows", func(c SinkCost) string { return count(c.Wrong) })
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(
		w,
		"\ntarget %s rows/s per core, aim %s: per Go core %s; both processes together %s\n",
		rate(SinkTarget),
		rate(SinkAim),
		metText(r.MetGo),
		metText(r.MetBoth),
	)
	return err
}

func metText(met bool) string {
	if met {
		return "met"
	}
	return "not met"
}

// Wrong rows of both parts.
func (r SinkReport) Wrong() int64 { return r.Alone.Wrong + r.Broker.Wrong }
