package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"ctrloop/cmd/ctrloop/bench"
	"ctrloop/cmd/ctrloop/progress"
	"ctrloop/internal/stream"
)

// BenchCmd is `ctrloop bench`.
type BenchCmd struct {
	Join  BenchJoinCmd  `cmd:"" help:"The join: its loop alone, end to end on the embedded broker, and on a real one by address."`
	Peers BenchPeersCmd `cmd:"" help:"The join beside Kafka Streams on one real broker and one log; see make bench-peers."`
	Sink  BenchSinkCmd  `cmd:"" help:"The sink: labels into the embedded warehouse, from memory and out of the embedded broker."`
	Query BenchQueryCmd `cmd:"" help:"The warehouse: labels made inside the engine, every view timed, storage by column."`
}

// trafficFlags say what log is joined.
type trafficFlags struct {
	Quick       bool          `help:"A smoke test with little traffic: its figures mean little."`
	Impressions int           `help:"Impressions of the log." default:"4000000"`
	Rate        int           `help:"Impressions a second of event time: with the window, how many are open at once." default:"2000"`
	ClickRate   float64       `help:"Clicks by impressions." default:"0.05"`
	MeanDelay   time.Duration `help:"Mean time from impression to click; exponential." default:"4m"`
	Window      time.Duration `help:"The join's window." default:"30m"`
	Seed        uint64        `help:"Draws the log." default:"1"`
	Partitions  int32         `help:"Partitions of the topics of an end-to-end run." default:"4"`
}

// quickDivisor is by how much --quick makes a log smaller, with as much of it open.
const quickDivisor = 40

// traffic returns the log, or a usageError.
func (f trafficFlags) traffic() (bench.Traffic, error) {
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
	t := bench.Traffic{Impressions: f.Impressions, Rate: f.Rate, ClickRate: f.ClickRate, MeanDelay: f.MeanDelay, Window: f.Window, Seed: f.Seed}
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

func (f brokerFlags) config() stream.Config {
	c := stream.Default()
	c.Brokers = []string{f.Kafka}
	return c
}

// BenchJoinCmd is `ctrloop bench join`.
type BenchJoinCmd struct {
	trafficFlags
	brokerFlags
	Only []string `help:"Parts to run, of loop, embedded and kafka; all that can run by default." enum:"loop,embedded,kafka" placeholder:"PART"`
	Dir  string   `help:"Folder for the embedded broker's log, removed at the end. Default: the system's temporary one." type:"existingdir" placeholder:"DIR"`
	JSON string   `name:"json" help:"Write the result to this file too; - is standard output, without the table." placeholder:"FILE"`
}

// Run measures the join.
func (c *BenchJoinCmd) Run(ctx context.Context, g *Globals, out *output) error {
	t, err := c.traffic()
	if err != nil {
		return err
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
	place := bench.Place{Partitions: c.Partitions, BrokerPID: c.BrokerPID, Log: out.quietLogger(g)}
	if runs("loop") {
		res, err := bench.Loop(ctx, t, func(share float64) { bar.Set(0, share, "loop alone") })
		if err != nil {
			return err
		}
		rep.Loop = &res
	}
	if runs("embedded") {
		place.Progress = func(what string) { bar.Set(0, 0, "embedded: "+what) }
		dir, err := os.MkdirTemp(c.Dir, "ctrloop-bench-*")
		if err != nil {
			return fmt.Errorf("folder of the embedded broker: %w", err)
		}
		defer os.RemoveAll(dir)
		embedded := place
		embedded.BrokerPID = 0 // it is in this process
		res, err := bench.Embedded(ctx, dir, embedded, t)
		if err != nil {
			return err
		}
		rep.Embedded = &res
	}
	if c.Kafka != "" && runs("kafka") {
		place.Kafka = c.config()
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
	t, err := c.traffic()
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
