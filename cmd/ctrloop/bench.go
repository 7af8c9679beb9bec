package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"ctrloop/bench"
	"ctrloop/internal/progress"
	"ctrloop/internal/stream"
)

// BenchCmd is `ctrloop bench`.
type BenchCmd struct {
	Join  BenchJoinCmd  `cmd:"" help:"The join against its targets: loop alone, state at scale, end to end on the embedded broker and on a real one, live."`
	Peers BenchPeersCmd `cmd:"" help:"The join beside Kafka Streams on one real broker and one log; see make bench-peers."`
	Sink  BenchSinkCmd  `cmd:"" help:"The sink: labels into the embedded warehouse, from memory and out of the embedded broker."`
	Query BenchQueryCmd `cmd:"" help:"The warehouse: labels made inside the engine, every view timed, storage by column."`
	Open  BenchOpenCmd  `cmd:"" hidden:"" help:"The state at scale, for bench join to run in a process of its own."`

	Experiments BenchExperimentsCmd `cmd:"" help:"What the statistics of rollouts promise, held against simulated users: false alarms, coverage, power."`
}

// trafficFlags say what log is joined.
type trafficFlags struct {
	Quick       bool          `help:"A smoke test with little traffic: its figures mean little."`
	Impressions int           `help:"Impressions of the log. Default: 12000000 of join, of which two in three are labelled in the measured time; 4000000 of peers." placeholder:"N"`
	Rate        int           `help:"Impressions a second of event time: with the window, how many are open at once." default:"2000"`
	ClickRate   float64       `help:"Clicks by impressions." default:"0.05"`
	MeanDelay   time.Duration `help:"Mean time from impression to click; exponential." default:"4m"`
	Window      time.Duration `help:"The join's window." default:"30m"`
	Seed        uint64        `help:"Draws the log." default:"1"`
	Partitions  int32         `help:"Partitions of the topics of an end-to-end run." default:"4"`
}

// quickDivisor is by how much --quick makes a log smaller, with as much of it open.
const quickDivisor = 40

// traffic returns the log, or a usageError. impressions is how many there are by default.
func (f trafficFlags) traffic(impressions int) (bench.Traffic, error) {
	if f.Impressions == 0 {
		f.Impressions = impressions
	}
	var errs []error
	bad := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(f.Impressions > 0 && f.Impressions <= 1<<31, "--impressions %d: want 1 to %d", f.Impressions, 1<<31)
	bad(f.Rate > 0, "--rate %d: want more than 0", f.Rate)
	bad(f.ClickRate > 0 && f.ClickRate <= 1, "--click-rate %v: want more than 0, at most 1", f.ClickRate)
	bad(f.MeanDelay > 0, "--mean-delay %v: want more than 0", f.MeanDelay)
	bad(f.Window >= time.Minute && f.Window <= 24*time.Hour, "--window %v: want 1m to 24h", f.Window)
	bad(f.Partitions > 0, "--partitions %d: want more than 0", f.Partitions)
	if err := errors.Join(errs...); err != nil {
		return bench.Traffic{}, usageError{err}
	}
	t := bench.Traffic{
		Impressions: f.Impressions,
		Rate:        f.Rate,
		ClickRate:   f.ClickRate,
		MeanDelay:   f.MeanDelay,
		Window:      f.Window,
		Seed:        f.Seed,
	}
	if f.Quick {
		t.Impressions, t.Rate = max(1, t.Impressions/quickDivisor), max(1, t.Rate/quickDivisor)
	}
	return t, nil
}

// brokerFlags name a real broker.
type brokerFlags struct {
	Kafka     string `help:"Address of a real broker, with empty topics, for the run end to end on it." placeholder:"HOST:PORT"`
	BrokerPID int    `name:"broker-pid" help:"Process of that broker on this machine, to count its processor time." placeholder:"PID"`
}

// benchFolder makes an empty folder below parent, which is made too; "" is the system's temporary one. The function removes
// the folder.
func benchFolder(parent string) (string, func(), error) {
	if parent != "" {
		if err := os.MkdirAll(parent, 0o755); err != nil {
			return "", nil, fmt.Errorf("--dir: %w", err)
		}
	}
	dir, err := os.MkdirTemp(parent, "ctrloop-bench-*")
	if err != nil {
		return "", nil, fmt.Errorf("folder of the benchmark: %w", err)
	}
	return dir, func() { _ = os.RemoveAll(dir) }, nil
}

func (f brokerFlags) config() stream.Config {
	c := stream.Default()
	c.Brokers = []string{f.Kafka}
	return c
}

// BenchJoinCmd is `ctrloop bench join`.
type BenchJoinCmd struct {
	trafficFlags
	brokerFlags
	Only []string `help:"Parts to run, of loop, open, embedded, live and kafka; all that can run by default." enum:"loop,open,embedded,live,kafka" placeholder:"PART"`
	Open int      `help:"Open impressions of the state at scale." default:"20000000"`
	Dir  string   `help:"Folder for segments and the embedded broker's log, on a disk with 6 GB free; made if need be; what the run puts there is removed at the end. Default: the system's temporary one." type:"path" placeholder:"DIR"`
	JSON string   `name:"json" help:"Write the result to this file too; - is standard output, without the table." placeholder:"FILE"`

	Profile string `help:"Folder for CPU profiles of loop, embedded and kafka, for go tool pprof." type:"existingdir" placeholder:"DIR"`
}

// profile is the file of a part.
func (c *BenchJoinCmd) profile(part string) string {
	if c.Profile == "" {
		return ""
	}
	return filepath.Join(c.Profile, part+".pprof")
}

// Run measures the join.
func (c *BenchJoinCmd) Run(ctx context.Context, g *Globals, out *output) error {
	t, err := c.traffic(12_000_000)
	if err != nil {
		return err
	}
	if c.Open <= 0 || c.Open > 1e9 {
		return usageError{fmt.Errorf("--open %d: want 1 to 1000000000", c.Open)}
	}
	open, live := c.Open, 20*time.Second
	if c.Quick {
		open, live = max(1, open/quickDivisor), 4*time.Second
	}
	only := map[string]bool{}
	for _, part := range c.Only {
		only[part] = true
	}
	if only["kafka"] && c.Kafka == "" {
		return usageError{errors.New("--only kafka: name the broker with --kafka HOST:PORT (`make kafka` starts one)")}
	}
	runs := func(part string) bool { return len(only) == 0 || only[part] }
	rep := bench.Report{Machine: bench.ThisMachine(), Traffic: t}
	bar := progress.Start(out.stderr, "bench join", "")
	place := bench.Place{Partitions: c.Partitions, BrokerPID: c.BrokerPID, Log: out.quietLogger(g), Broker: embeddedBroker(g)}
	if runs("loop") {
		res, err := bench.Loop(ctx, t, c.profile("loop"), func(share float64) { bar.Set(0, share, "loop alone") })
		if err != nil {
			return err
		}
		rep.Loop = &res
	}
	if runs("open") {
		bar.Set(0, 0, fmt.Sprintf("%d open impressions", open))
		dir, remove, err := benchFolder(c.Dir)
		if err != nil {
			return err
		}
		res, err := bench.OpenIn(ctx, open, c.Seed, dir)
		remove()
		if err != nil {
			return err
		}
		rep.Open = &res
	}
	if runs("embedded") {
		place.Progress = func(what string) { bar.Set(0, 0, "embedded: "+what) }
		dir, remove, err := benchFolder(c.Dir)
		if err != nil {
			return err
		}
		embedded := place
		embedded.Profile = c.profile("embedded")
		res, err := bench.Embedded(ctx, dir, embedded, t)
		remove()
		if err != nil {
			return err
		}
		rep.Embedded = &res
	}
	if runs("live") {
		place.Progress = func(what string) { bar.Set(0, 0, what) }
		dir, remove, err := benchFolder(c.Dir)
		if err != nil {
			return err
		}
		res, err := bench.Live(ctx, dir, place, t, live)
		remove()
		if err != nil {
			return err
		}
		rep.Live = &res
	}
	if c.Kafka != "" && runs("kafka") {
		place.Kafka, place.Profile = c.config(), c.profile("kafka")
		place.Progress = func(what string) { bar.Set(0, 0, "real broker: "+what) }
		if err := bench.Load(ctx, place, t); err != nil {
			return err
		}
		res, err := bench.Join(ctx, place, t, "bench-join")
		if err != nil {
			return err
		}
		rep.Kafka = &res
	}
	bar.Done(0, "")
	if err := c.report(out, rep); err != nil {
		return err
	}
	if n := rep.Wrong(); n > 0 || !rep.Balanced() {
		return fmt.Errorf("%d labels are wrong, ledger closes: %v: the figures are of a join that does not work", n, rep.Balanced())
	}
	return nil
}

func (c *BenchJoinCmd) report(out *output, rep bench.Report) error {
	if err := out.writeJSON(c.JSON, rep); err != nil || c.JSON == "-" {
		return err
	}
	return rep.Print(out.stdout)
}

// BenchOpenCmd is `ctrloop bench open`, a part of `bench join`.
type BenchOpenCmd struct {
	Open int    `required:"" help:"Open impressions."`
	Seed uint64 `help:"Draws the log."`
	Dir  string `required:"" help:"Folder for the segments." type:"existingdir"`
}

// Run measures the state and prints it as JSON.
func (c *BenchOpenCmd) Run(ctx context.Context, out *output) error {
	res, err := bench.Open(ctx, c.Open, c.Seed, c.Dir)
	if err != nil {
		return err
	}
	return out.printJSON(res)
}

// BenchPeersCmd is `ctrloop bench peers`.
type BenchPeersCmd struct {
	trafficFlags
	brokerFlags
	Streams string        `required:"" help:"Folder of the built Kafka Streams program: classes/ and lib/." type:"existingdir" placeholder:"DIR"`
	Rounds  int           `help:"Runs of each, in turn." default:"3"`
	Heap    string        `help:"Heap of the peer's JVM." default:"2g"`
	Threads int           `help:"Stream threads of the peer." default:"2"`
	Stall   time.Duration `help:"The peer's run is over when it writes nothing for so long." default:"1m"`
	JSON    string        `name:"json" help:"Write the result to this file too; - is standard output, without the table." placeholder:"FILE"`
}

// Run measures both.
func (c *BenchPeersCmd) Run(ctx context.Context, g *Globals, out *output) error {
	t, err := c.traffic(4_000_000)
	if err != nil {
		return err
	}
	if c.Kafka == "" {
		return usageError{errors.New("name the broker with --kafka HOST:PORT (`make bench-peers` starts one)")}
	}
	java, err := exec.LookPath("java")
	if err != nil {
		return withHint(err, "install a JDK 17 or newer")
	}
	state, err := os.MkdirTemp("", "ctrloop-peers-*")
	if err != nil {
		return fmt.Errorf("folder of the peer's stores: %w", err)
	}
	defer os.RemoveAll(state)
	bar := progress.Start(out.stderr, "bench peers", "")
	place := bench.Place{
		Kafka: c.config(), Partitions: c.Partitions, BrokerPID: c.BrokerPID, Log: out.quietLogger(g),
		Progress: func(what string) { bar.Set(0, 0, what) },
	}
	rep, err := bench.Peers(ctx, place, t, bench.Streams{
		Java: java, Dir: filepath.Clean(c.Streams), Heap: c.Heap, Threads: c.Threads, State: state, Log: out.stderr, Stall: c.Stall,
	}, c.Rounds)
	if err != nil {
		return err
	}
	bar.Done(0, "")
	if err := out.writeJSON(c.JSON, rep); err != nil || c.JSON == "-" {
		return err
	}
	if err := rep.Print(out.stdout); err != nil {
		return err
	}
	if n := rep.Ours().Wrong.Sum(); n > 0 {
		return fmt.Errorf("%d of our labels are wrong", n)
	}
	return nil
}
