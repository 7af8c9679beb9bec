package broker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"ctrloop/internal/lockfile"
	"ctrloop/internal/loopback"
	"ctrloop/internal/process"
	"ctrloop/internal/stream"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// Program is what the broker runs with.
type Program struct {
	// Java is the path of the launcher, of Java 17 or newer.
	Java string
	// Jars is the folder of Kafka's jars.
	Jars string
	// Cache is what Java has prepared ahead of time for these jars (Record); empty: none, and the start takes longer.
	Cache string
}

// Config of a broker.
type Config struct {
	Program Program
	// Dir holds everything the broker remembers; it is created. One process at a time may use it.
	Dir string
	// Port on loopback; 0 takes the one that the folder's last broker had, or a free one where it is taken.
	Port int
	// Heap bounds Java's heap, bytes; 0 takes DefaultHeap. The process takes some 100 MB more.
	Heap int64
	// Server bounds starts and restarts; the zero value takes the default.
	Server process.ServerConfig

	record string // where the broker writes Java's cache when it ends
}

// DefaultHeap is enough for the built-in loop and for a benchmark of the join.
const DefaultHeap = 256 << 20

// What is in the folder, besides the files of freeze.go.
const (
	dataFolder     = "data"
	oldFolder      = "log"  // of the broker in process that ctrloop had before
	portsFile      = "port" // of the folder's last broker and its controller
	lockFile       = "LOCK"
	propertiesFile = "server.properties"
	controllerFile = "controller.properties"
	loggingFile    = "log4j2.properties"
	// LogFile is where the broker writes what is worth a look.
	LogFile = "broker.log"
)

// ErrInUse is returned when another process runs a broker on the same directory.
var ErrInUse = errors.New("another process runs a broker on this directory")

// OldFolderError says that a folder was written by the broker that ctrloop had before it ran Apache Kafka.
type OldFolderError struct{ Dir string }

// Error implements error.
func (e *OldFolderError) Error() string {
	return fmt.Sprintf("%s was written by the broker that ctrloop embedded before it ran Apache Kafka, which cannot read it", e.Dir)
}

// Hint says what to do about it.
func (e *OldFolderError) Hint() string {
	return "start on a new folder (--dir); to keep the data, let the old ctrloop run on the old folder and copy its topics to the new " +
		"broker with a tool of Kafka's (MirrorMaker)"
}

// Broker is a running broker.
type Broker struct {
	cfg           Config
	port, control int
	unlock        func()
	server        *process.Server
	cancel        context.CancelFunc
	done          chan struct{} // closed when the supervisor has ended
	err           error         // why, after done
}

// defaultServer: a start takes a second, on a busy machine ten. A broker that has been ready is started again without end.
var defaultServer = process.ServerConfig{
	ReadyTimeout: time.Minute, ProbeInterval: 20 * time.Millisecond,
	MinBackoff: 50 * time.Millisecond, MaxBackoff: 5 * time.Second, MaxFailures: 3,
}

// stopGrace is how long a broker may take to write its state and stop.
const stopGrace = 20 * time.Second

// Start starts the broker and returns when it answers. The context bounds the start only; use Stop.
func Start(ctx context.Context, cfg Config, log zerolog.Logger, reg prometheus.Registerer) (*Broker, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("folder of the broker: %w", err)
	}
	if cfg.Dir = dir; cfg.Heap == 0 {
		cfg.Heap = DefaultHeap
	}
	if cfg.Server == (process.ServerConfig{}) {
		cfg.Server = defaultServer
	}
	b := &Broker{cfg: cfg, done: make(chan struct{})}
	if err := b.prepare(ctx); err != nil {
		if b.unlock != nil {
			b.unlock()
		}
		return nil, fmt.Errorf("embedded Kafka: %w", err)
	}
	if b.server, err = process.NewServer("kafka", cfg.Server, b.launch, log, reg); err != nil {
		b.unlock()
		return nil, err
	}
	var running context.Context
	running, b.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(b.done)
		b.err = b.server.Run(running)
	}()
	ready := make(chan error, 1)
	go func() { ready <- b.server.WaitReady(ctx) }()
	select {
	case err = <-ready:
	case <-b.done:
		err = b.err
	}
	if err != nil {
		words := b.lastWords()
		b.Stop()
		return nil, fmt.Errorf("start Apache Kafka on %s, port %d: %w%s", cfg.Dir, b.port, err, words)
	}
	if err := loopback.KeepPorts(filepath.Join(cfg.Dir, portsFile), b.port, b.control); err != nil {
		log.Warn().Err(err).Msg("the broker may come back on other ports, where processes that know its address do not find it")
	}
	return b, nil
}

// prepare makes the directory ours, takes ports and formats a new folder.
func (b *Broker) prepare(ctx context.Context) error {
	dir := b.cfg.Dir
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, oldFolder)); err == nil {
		return &OldFolderError{Dir: dir}
	}
	var err error
	if b.unlock, err = lockDir(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(dir, FrozenFolder)); err != nil { // of a process that was killed
		return err
	}
	if err := awaitGone(ctx, filepath.Join(dir, dataFolder, ".lock")); err != nil {
		return err
	}
	if err := b.takePorts(); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, loggingFile), []byte(logging(dir)), 0o644); err != nil {
		return err
	}
	return format(ctx, b.cfg, properties(b.port, b.control))
}

// takePorts takes the configured port, the one that the folder's last broker had, or a free one.
func (b *Broker) takePorts() error {
	b.port = b.cfg.Port
	kept := loopback.KeptPorts(filepath.Join(b.cfg.Dir, portsFile), 2)
	if kept != nil {
		if b.port == 0 && loopback.Free(kept[0]) {
			b.port = kept[0]
		}
		if loopback.Free(kept[1]) {
			b.control = kept[1]
		}
	}
	for _, port := range []*int{&b.port, &b.control} {
		if *port == 0 {
			var err error
			if *port, err = loopback.FreePort(); err != nil {
				return err
			}
		}
	}
	if !loopback.Free(b.port) {
		return fmt.Errorf("port %d of 127.0.0.1 is taken: name another one (kafka.embedded_port), or 0 for a free one", b.port)
	}
	return nil
}

// lockDir takes the directory for this process.
func lockDir(dir string) (release func(), err error) {
	release, err = lockfile.Acquire(filepath.Join(dir, lockFile), strconv.Itoa(os.Getpid()))
	if held, ok := errors.AsType[*lockfile.HeldError](err); ok {
		return nil, fmt.Errorf("%s (pid %s): %w: stop it, or choose another directory", held.Path, held.Holder, ErrInUse)
	}
	return release, err
}

// awaitGone waits for a broker whose parent was killed a moment ago: it dies with its parent, and its ports are free then.
func awaitGone(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for deadline := time.Now().Add(5 * time.Second); ; {
		held := unix.Flock_t{Type: unix.F_WRLCK} // as Java locks a file
		if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &held); err != nil {
			return fmt.Errorf("lock of the broker's data: %w", err)
		}
		switch {
		case held.Type == unix.F_UNLCK:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("process %d holds %s: %w: stop it", held.Pid, path, ErrInUse)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond): // such a lock can only be polled
		}
	}
}

// launch prepares one start of the process.
func (b *Broker) launch(ctx context.Context) (process.Spec, func(context.Context) error, error) {
	if err := b.settle(ctx); err != nil {
		return process.Spec{}, nil, err
	}
	spec := process.Spec{
		Path: b.cfg.Program.Java, Dir: b.cfg.Dir, Grace: stopGrace,
		Args: jvm(b.cfg, "kafka.Kafka", filepath.Join(b.cfg.Dir, propertiesFile)),
	}
	if b.cfg.record != "" {
		spec.Args, spec.Grace = append([]string{"-XX:AOTCacheOutput=" + b.cfg.record}, spec.Args...), recordTimeout
	}
	c := b.Config()
	probe := func(ctx context.Context) error {
		if err := answers(ctx, c.Brokers[0]); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		return stream.CheckBroker(ctx, c)
	}
	return spec, probe, nil
}

// jvm are the arguments that run a class of the jars.
func jvm(cfg Config, class string, args ...string) []string {
	out := []string{
		"-Xms64m", fmt.Sprintf("-Xmx%dk", cfg.Heap>>10), "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError",
		// The optimising compiler takes more of two cores, for minutes, than its code gives back: bench join end to end had 482 K events/s
		// with it and 648 K without (2 cores, 24 GiB, 2026-12-01).
		"-XX:TieredStopAtLevel=1",
		// A thread that has sent one large answer keeps a buffer of that size otherwise.
		"-Djdk.nio.maxCachedBufferSize=262144",
		"-Dlog4j2.configurationFile=" + filepath.Join(cfg.Dir, loggingFile),
	}
	if cfg.Program.Cache != "" {
		// One that does not fit is left alone, and says so only where one asks.
		out = append(out, "-XX:AOTCache="+cfg.Program.Cache, "-Xlog:disable", "-Xlog:all=error:stderr")
	}
	return append(append(out, "-cp", filepath.Join(cfg.Program.Jars, "*"), class), args...)
}

// Brokers are the addresses to put into stream.Config.Brokers.
func (b *Broker) Brokers() []string {
	return []string{net.JoinHostPort("127.0.0.1", strconv.Itoa(b.port))}
}

// Config reaches this broker.
func (b *Broker) Config() stream.Config {
	c := stream.Default()
	c.Brokers = b.Brokers()
	return c
}

// PID of the broker's process, 0 while none runs.
func (b *Broker) PID() int { return b.server.PID() }

// WaitReady blocks until the broker answers, after a restart too.
func (b *Broker) WaitReady(ctx context.Context) error { return b.server.WaitReady(ctx) }

// Wait returns when ctx is done (nil), or with the reason why the broker cannot be kept running.
func (b *Broker) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-b.done:
		return fmt.Errorf("%w%s", b.err, b.lastWords())
	}
}

// Stop lets the broker write what it holds in memory, ends it and frees the directory.
func (b *Broker) Stop() {
	b.cancel()
	<-b.done
	b.unlock()
}

// lastWords is the end of its log, for an error.
func (b *Broker) lastWords() string {
	const most = 1000
	path := filepath.Join(b.cfg.Dir, LogFile)
	raw, err := os.ReadFile(path)
	if err != nil || len(raw) == 0 {
		return ""
	}
	return fmt.Sprintf("; the end of %s: %s", path, raw[max(0, len(raw)-most):])
}
