package kafkatest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ctrloop/internal/setup"
	"ctrloop/internal/stream"
)

// startTimeout bounds the start; it takes 3 s on a quiet machine.
const startTimeout = 2 * time.Minute

// stopGrace is how long a broker may take to write its state and stop.
const stopGrace = 20 * time.Second

// clusterID is any: no two clusters ever meet.
const clusterID = "4L6g3nShT-eMCtK--X86sw"

// ErrMissing is wrapped by errors that say what a real broker needs and this machine lacks.
var ErrMissing = errors.New("a real Kafka broker cannot be started here")

// Options of a broker.
type Options struct {
	// Home is where Java and the jars are, see setup.Home.
	Home string
	// Dir holds its data and logs; it is created, and a broker that was there before goes on.
	Dir string
	// Port of the plain listener on loopback; 0 takes a free one.
	Port int
	// Heap of the JVM, as in -Xmx; empty: 384m.
	Heap string
	// Fast starts quicker and peaks lower: no optimising compiler. For tests, not for benchmarks.
	Fast bool
	// Secure adds a TLS listener with SASL/SCRAM; nil: none.
	Secure *Secure
	// Properties are appended to server.properties.
	Properties []string
}

// Secure is a listener with TLS and SASL/SCRAM.
type Secure struct {
	// PEMFile holds the broker's certificate and private key.
	PEMFile string
	// Users by name, with their passwords; each may use SCRAM-SHA-256 and SCRAM-SHA-512.
	Users map[string]string
}

// Broker is a broker in a process of its own. One goroutine at a time uses it.
type Broker struct {
	opt                    Options
	node                   int      // its id, from 1
	peers                  []string // addresses of the controllers, by node id - 1
	java, jars             string
	port, control, tlsPort int
	cmd                    *exec.Cmd
	done                   chan struct{} // closed when cmd has ended
}

// New prepares a broker; Start starts it. It fails with ErrMissing where Java or the jars are not there.
func New(ctx context.Context, opt Options) (*Broker, error) {
	b, err := prepare(opt, 1)
	if err != nil {
		return nil, err
	}
	b.peers = []string{b.controller()}
	return b, b.format(ctx)
}

// prepare finds what the broker needs and takes its ports.
func prepare(opt Options, node int) (*Broker, error) {
	b := &Broker{opt: opt, port: opt.Port, node: node}
	program, err := setup.Kafka(opt.Home)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMissing, err)
	}
	b.java, b.jars = program.Java, program.Jars
	for _, port := range []*int{&b.port, &b.control, &b.tlsPort} {
		if *port == 0 {
			if *port, err = freePort(); err != nil {
				return nil, err
			}
		}
	}
	return b, nil
}

// controller is the address at which the other controllers of its cluster reach this one.
func (b *Broker) controller() string { return "127.0.0.1:" + strconv.Itoa(b.control) }

// format writes the configuration and, where it was not done before, the first files of the data folder.
func (b *Broker) format(ctx context.Context) error {
	if err := os.MkdirAll(b.opt.Dir, 0o755); err != nil {
		return fmt.Errorf("folder of the broker: %w", err)
	}
	if err := os.WriteFile(b.properties(), []byte(b.config()), 0o600); err != nil {
		return fmt.Errorf("write the broker's configuration: %w", err)
	}
	if _, err := os.Stat(filepath.Join(b.opt.Dir, "data", "meta.properties")); err == nil {
		return nil // formatted before
	}
	args := []string{"format", "-c", b.properties(), "-t", clusterID}
	if b.opt.Secure != nil {
		for user, password := range b.opt.Secure.Users {
			for _, mechanism := range []string{"SCRAM-SHA-256", "SCRAM-SHA-512"} {
				args = append(args, "--add-scram", fmt.Sprintf("%s=[name=%s,password=%s]", mechanism, user, password))
			}
		}
	}
	format := exec.CommandContext(ctx, b.java, b.jvm("kafka.tools.StorageTool", args...)...)
	format.Dir = b.opt.Dir
	if out, err := format.CombinedOutput(); err != nil {
		return fmt.Errorf("format the broker's storage: %w: %s", err, out)
	}
	return nil
}

func (b *Broker) properties() string { return filepath.Join(b.opt.Dir, "server.properties") }

func (b *Broker) logFile() string { return filepath.Join(b.opt.Dir, "broker.log") }

// jvm returns the arguments that run a class of the jars.
func (b *Broker) jvm(class string, args ...string) []string {
	heap := b.opt.Heap
	if heap == "" {
		heap = "384m"
	}
	out := []string{"-Xms" + heap, "-Xmx" + heap, "-Dlog4j2.level=WARN", "-cp", filepath.Join(b.jars, "*")}
	if b.opt.Fast {
		out = append([]string{"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"}, out...)
	} else {
		out = append([]string{"-XX:+UseG1GC"}, out...)
	}
	return append(append(out, class), args...)
}

func (b *Broker) config() string {
	listeners, advertised, protocols := "PLAINTEXT://127.0.0.1:%d,CTL://127.0.0.1:%d", "PLAINTEXT://127.0.0.1:%d",
		"PLAINTEXT:PLAINTEXT,CTL:PLAINTEXT"
	listeners, advertised = fmt.Sprintf(listeners, b.port, b.control), fmt.Sprintf(advertised, b.port)
	var secure []string
	if s := b.opt.Secure; s != nil {
		listeners += fmt.Sprintf(",SECURE://127.0.0.1:%d", b.tlsPort)
		advertised += fmt.Sprintf(",SECURE://localhost:%d", b.tlsPort)
		protocols += ",SECURE:SASL_SSL"
		login := "org.apache.kafka.common.security.scram.ScramLoginModule required;"
		secure = []string{
			"sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512",
			"listener.name.secure.scram-sha-256.sasl.jaas.config=" + login,
			"listener.name.secure.scram-sha-512.sasl.jaas.config=" + login,
			"ssl.keystore.type=PEM", "ssl.keystore.location=" + s.PEMFile,
		}
	}
	voters := make([]string, len(b.peers))
	for i, address := range b.peers {
		voters[i] = fmt.Sprintf("%d@%s", i+1, address)
	}
	lines := []string{
		"process.roles=broker,controller", "node.id=" + strconv.Itoa(b.node),
		"controller.quorum.voters=" + strings.Join(voters, ","), "controller.listener.names=CTL",
		"listeners=" + listeners, "advertised.listeners=" + advertised, "listener.security.protocol.map=" + protocols,
		"log.dirs=data", // in its working folder: a list, whose names must not have a comma
	}
	lines = slices.Concat(lines, replication(len(b.peers)), tuning, secure, b.opt.Properties)
	return strings.Join(lines, "\n") + "\n"
}

// replication is how many copies a cluster of n has of everything, and how many of them a write waits for: of three
// brokers one may be lost.
func replication(n int) []string {
	copies, inSync := min(3, n), 1
	if copies == 3 {
		inSync = 2
	}
	return []string{
		fmt.Sprintf("default.replication.factor=%d", copies), fmt.Sprintf("min.insync.replicas=%d", inSync),
		fmt.Sprintf("offsets.topic.replication.factor=%d", copies),
		fmt.Sprintf("transaction.state.log.replication.factor=%d", copies), fmt.Sprintf("transaction.state.log.min.isr=%d", inSync),
		fmt.Sprintf(
			"share.coordinator.state.topic.replication.factor=%d",
			copies,
		), fmt.Sprintf("share.coordinator.state.topic.min.isr=%d", inSync),
	}
}

// tuning is what every broker here has, on this machine or in a container.
var tuning = []string{
	// Each partition of the two is loaded at a start.
	"offsets.topic.num.partitions=4", "transaction.state.log.num.partitions=4",
	"group.initial.rebalance.delay.ms=0",
	"auto.create.topics.enable=false",
	// Record times are event times: made-up ones of tests may lie in the future.
	"log.message.timestamp.after.max.ms=9223372036854775807",
	"log.retention.ms=-1",
	// How often transactions are looked at that have timed out; the default of 10 s is what a test would wait.
	"transaction.abort.timed.out.transaction.cleanup.interval.ms=1000",
}

// Start starts the broker, or starts it again on the same ports, and returns when it answers.
func (b *Broker) Start(ctx context.Context) error {
	if b.Running() {
		return errors.New("the broker runs already")
	}
	log, err := os.OpenFile(b.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("log of the broker: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(b.java, b.jvm("kafka.Kafka", b.properties())...)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr, cmd.Dir = log, log, childAttr(), b.opt.Dir
	started, done := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the parent-death signal is sent when this thread ends, not the process
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(done)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start the broker: %w", err)
	}
	b.cmd, b.done = cmd, done
	if err := b.answers(ctx); err != nil {
		b.Kill()
		return err
	}
	return nil
}

// answers waits for the broker.
func (b *Broker) answers(ctx context.Context) error {
	err := await(ctx, b.Config(), b.done)
	switch {
	case errors.Is(err, errEnded):
		return fmt.Errorf("the broker ended while it started: %s", b.lastWords())
	case err != nil:
		return fmt.Errorf("the broker does not answer: %w: %s", err, b.lastWords())
	}
	return nil
}

var errEnded = errors.New("its process has ended")

// await waits until a broker answers, or until ended is closed.
func await(ctx context.Context, c stream.Config, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		try, stop := context.WithTimeout(ctx, 2*time.Second)
		err := stream.CheckBroker(try, c)
		stop()
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			return errEnded
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// lastWords is the end of its log.
func (b *Broker) lastWords() string {
	const most = 2000
	raw, err := os.ReadFile(b.logFile())
	if err != nil {
		return err.Error()
	}
	return string(raw[max(0, len(raw)-most):])
}

// Running says whether its process lives.
func (b *Broker) Running() bool {
	if b.cmd == nil {
		return false
	}
	select {
	case <-b.done:
		return false
	default:
		return true
	}
}

// PID of the broker's process, 0 where none runs.
func (b *Broker) PID() int {
	if !b.Running() {
		return 0
	}
	return b.cmd.Process.Pid
}

// Stop lets the broker end in order; one that does not is killed.
func (b *Broker) Stop() error {
	if !b.Running() {
		return nil
	}
	_ = syscall.Kill(-b.cmd.Process.Pid, syscall.SIGTERM)
	select {
	case <-b.done:
		return nil
	case <-time.After(stopGrace):
		b.Kill()
		return fmt.Errorf("the broker did not stop within %s and was killed: %s", stopGrace, b.lastWords())
	}
}

// Kill is kill -9. What the broker had acknowledged is in the page cache and survives.
func (b *Broker) Kill() {
	if !b.Running() {
		return
	}
	_ = syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL)
	<-b.done
}

// Signal sends a signal, such as SIGSTOP, to the broker's process.
func (b *Broker) Signal(s syscall.Signal) error { return syscall.Kill(b.PID(), s) }

// Config reaches the plain listener.
func (b *Broker) Config() stream.Config {
	c := stream.Default()
	c.Brokers = []string{"127.0.0.1:" + strconv.Itoa(b.port)}
	return c
}

// SecureAddress is the TLS listener, for Options.Secure.
func (b *Broker) SecureAddress() string { return "localhost:" + strconv.Itoa(b.tlsPort) }
