package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/joiner"
	"ctrloop/schemas"
)

// streamsTopic is where the peer writes: one record an impression, keyed by its id, whose value begins with 1 where
// a click was joined and 0 where there was none.
const streamsTopic = "bench.streams"

// Streams says how the Kafka Streams program is run.
type Streams struct {
	// Java is the program, Dir the built program's folder: classes/ and lib/.
	Java, Dir string
	// Heap of its JVM, as in -Xmx, and its stream threads.
	Heap    string
	Threads int
	// State is a folder for its stores.
	State string
	// Log takes what it prints.
	Log io.Writer
	// Stall is how long it may make no progress before the run is over; what is missing then is lost.
	Stall time.Duration
}

// Peers runs both on one loaded log, in turn, `rounds` times.
func Peers(ctx context.Context, p Place, t Traffic, s Streams, rounds int) (PeersReport, error) {
	r := PeersReport{Machine: ThisMachine(), Traffic: t}
	if err := Load(ctx, p, t); err != nil {
		return r, err
	}
	loaded, err := stream.EndOffsets(ctx, p.Kafka, inputs...)
	if err != nil {
		return r, err
	}
	events := records(loaded)
	if err := closeLog(ctx, p, t); err != nil {
		return r, err
	}
	for i := range rounds {
		ours, err := ourRound(ctx, p, t, i, events)
		if err != nil {
			return r, err
		}
		theirs, err := s.round(ctx, p, t, i, events)
		if err != nil {
			return r, err
		}
		r.Rounds = append(r.Rounds, Round{Ours: ours, Peer: theirs})
	}
	r.PerCoreRatio = ratio(r.Ours().Cost.PerCore(), r.Peer().Cost.PerCore())
	return r, nil
}

// ourRound joins the whole log into fresh topics.
func ourRound(ctx context.Context, p Place, t Traffic, n int, events int64) (Peer, error) {
	peer := Peer{Name: "ctrloop"}
	outputs := []schemas.Topic{
		{Name: schemas.TopicLabels},
		{Name: schemas.TopicAudit},
		{Name: schemas.TopicLate},
		{Name: schemas.TopicDeadLetters},
	}
	if err := remake(ctx, p, outputs...); err != nil {
		return peer, err
	}
	ends, err := stream.EndOffsets(ctx, p.Kafka, inputs...)
	if err != nil {
		return peer, err
	}
	runtime.GC() // the garbage of loading and checking is not the join's
	p.say("round %d: ctrloop", n+1)
	w := startWatch(p.BrokerPID)
	i, err := run(ctx, p, t, fmt.Sprintf("bench-peers-%d", n))
	if err != nil {
		return peer, err
	}
	defer i.end() //nolint:errcheck // ended below, where its error counts
	if err := i.await(ctx, func(l joiner.Ledger) bool { return drained(l, ends) }); err != nil {
		return peer, err
	}
	peer.Cost = w.read(events)
	if err := i.end(); err != nil {
		return peer, err
	}
	peer.Wrong, err = checkTopic(ctx, p, t, schemas.TopicLabels, (*oracle).label)
	return peer, err
}

// remake empties topics by making them anew.
func remake(ctx context.Context, p Place, topics ...schemas.Topic) error {
	var names []string
	for _, t := range topics {
		names = append(names, t.Name)
	}
	if err := stream.DeleteTopics(ctx, p.Kafka, names...); err != nil {
		return err
	}
	return stream.EnsureTopics(ctx, p.Kafka, topics, p.Partitions, -1)
}

// round runs the peer once and checks its output. Its processor time is counted from the start of its streams, the
// start of the JVM left out, to its last output.
func (s Streams) round(ctx context.Context, p Place, t Traffic, n int, events int64) (Peer, error) {
	peer := Peer{Name: "Kafka Streams"}
	if err := remake(ctx, p, schemas.Topic{Name: streamsTopic}); err != nil {
		return peer, err
	}
	state, err := os.MkdirTemp(s.State, "streams-*")
	if err != nil {
		return peer, fmt.Errorf("folder of the peer's stores: %w", err)
	}
	defer os.RemoveAll(state)
	p.say("round %d: Kafka Streams", n+1)
	cmd := exec.CommandContext(
		ctx,
		s.Java,
		"-Xms"+s.Heap,
		"-Xmx"+s.Heap,
		"-XX:+UseParallelGC",
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
		"-cp",
		filepath.Join(s.Dir, "classes")+":"+filepath.Join(s.Dir, "lib", "*"),
		"bench.Join",
	)
	cmd.Env = append(os.Environ(),
		"BOOTSTRAP="+strings.Join(p.Kafka.Brokers, ","), fmt.Sprintf("APP=bench-streams-%d-%d", os.Getpid(), n), "STATE="+state,
		"IMPRESSIONS_TOPIC="+schemas.TopicImpressions, "CLICKS_TOPIC="+schemas.TopicClicks, "OUT_TOPIC="+streamsTopic,
		fmt.Sprintf("WINDOW_MS=%d", t.Window.Milliseconds()), fmt.Sprintf("THREADS=%d", s.Threads))
	cmd.Stderr = s.Log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return peer, err
	}
	if err := cmd.Start(); err != nil {
		return peer, fmt.Errorf("start the peer: %w", err)
	}
	lines := bufio.NewScanner(out)
	ready := lines.Scan() && lines.Text() == "READY"
	go func() { _, _ = io.Copy(s.Log, out) }()
	if !ready {
		_ = cmd.Process.Kill()
		return peer, fmt.Errorf("the peer did not start: %q: %w", lines.Text(), cmd.Wait())
	}
	peer.Cost, err = s.watch(ctx, p, t, cmd.Process.Pid)
	peer.Cost.Events = events
	_ = cmd.Process.Signal(syscall.SIGTERM)
	werr := cmd.Wait()
	if err != nil {
		return peer, err
	}
	if werr != nil && cmd.ProcessState.ExitCode() != 128+int(syscall.SIGTERM) { // the JVM's status after SIGTERM
		return peer, fmt.Errorf("the peer: %w", werr)
	}
	peer.Wrong, err = checkTopic(ctx, p, t, streamsTopic, func(o *oracle, r *stream.Record) {
		o.verdict(r.Key, len(r.Value) > 0 && r.Value[0] == 1)
	})
	return peer, err
}

// watch waits until the peer has written everything, or stands still. Once all is written it counts from the side,
// cheaply: by offsets, which markers of transactions swell; the oracle has the last word.
func (s Streams) watch(ctx context.Context, p Place, t Traffic, pid int) (Cost, error) {
	began, cpu, broker := time.Now(), processCPU(pid), processCPU(p.BrokerPID)
	producer, err := stream.NewProducer(p.Kafka, stream.ProducerConfig{})
	if err != nil {
		return Cost{}, err
	}
	defer producer.Close()
	keys := tickKeys(p.Partitions)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var cost Cost
	was, changed := int64(-1), time.Now()
	for n := int64(0); ; n++ {
		select {
		case <-ctx.Done():
			return cost, ctx.Err()
		case <-tick.C:
		}
		ends, err := stream.EndOffsets(ctx, p.Kafka, streamsTopic)
		if err != nil {
			return cost, err
		}
		if at := records(ends); at != was {
			was, changed = at, time.Now()
			cost = Cost{
				WallSeconds:      time.Since(began).Seconds(),
				CPUSeconds:       processCPU(pid) - cpu,
				BrokerCPUSeconds: processCPU(p.BrokerPID) - broker,
			}
		}
		quiet := time.Since(changed)
		if was >= int64(t.Impressions) && quiet > s.quiet() || quiet > s.Stall {
			return cost, nil
		}
		// It closes windows when it reads something later, at most once a second: keep event time going.
		var rs []*stream.Record
		for i, key := range keys {
			r := punctuation(schemas.TopicClicks, int32(i), t.endMS()+n)
			r.Key = key
			rs = append(rs, r)
		}
		if err := producer.Produce(ctx, rs...); err != nil {
			return cost, err
		}
	}
}

// tickKeys has a key for each partition that lands in it: the peer closes nothing on records without a key.
func tickKeys(partitions int32) [][]byte {
	keys := make([][]byte, partitions)
	for n, left := 0, partitions; left > 0; n++ {
		key := fmt.Appendf(nil, "tick %d", n)
		if i := stream.PartitionOf(key, partitions); keys[i] == nil {
			keys[i] = key
			left--
		}
	}
	return keys
}

// quiet is how long nothing may come after everything seems to be there.
func (s Streams) quiet() time.Duration { return min(3*time.Second, s.Stall) }
