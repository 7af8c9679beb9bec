package joiner

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"ctrloop/e2e/shipped"
	"ctrloop/internal/stream"
	"ctrloop/internal/stream/kafkatest"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

// This file holds what only a real broker can do to a joiner, and what only the shipped binary can suffer. It runs
// in `make kafka-ring`.

// history is a truth that is written to a real broker slice by slice.
type history struct {
	*truth
	kafka  stream.Config
	broker *kafkatest.Broker // nil where a test does nothing to it
	part   int
}

const (
	historyParts      = 8
	historyPartitions = 3
)

// newHistory is for tests that do nothing to the broker, so that it may be in a container.
func newHistory(t *testing.T, seed uint64) (*history, Config) {
	t.Helper()
	streamtest.NeedReal(t)
	return historyOn(t, seed, streamtest.StartTopics(t, historyPartitions).Config)
}

// newOwnHistory has a broker that the test may kill.
func newOwnHistory(t *testing.T, seed uint64, secure *kafkatest.Secure) (*history, Config) {
	t.Helper()
	b := streamtest.StartReal(t, secure)
	h, cfg := historyOn(t, seed, b.Config())
	h.broker = b
	return h, cfg
}

func historyOn(t *testing.T, seed uint64, kafka stream.Config) (*history, Config) {
	t.Helper()
	if err := stream.EnsureTopics(t.Context(), kafka, schemas.Topics(), historyPartitions, -1); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(&streamtest.Broker{Config: kafka})
	cfg.InstanceID = "joiner-0" // static: a successor takes the place in the group at once
	return &history{truth: newTruth(seed, cfg, historyPartitions, 12_000, 10*time.Minute), kafka: kafka}, cfg
}

// write writes the next part; the last one closes every window.
func (h *history) write(t *testing.T) {
	t.Helper()
	ni, nc := len(h.imps), len(h.clks)
	streamtest.Produce(t, h.kafka, h.imps[h.part*ni/historyParts:(h.part+1)*ni/historyParts]...)
	streamtest.Produce(t, h.kafka, h.clks[h.part*nc/historyParts:(h.part+1)*nc/historyParts]...)
	if h.part++; h.part == historyParts {
		streamtest.Produce(t, h.kafka, h.punctuation(h.endMS)...)
	}
}

// finish lets a joiner in this process do what is left, and holds everything against the truth.
func (h *history) finish(t *testing.T, cfg Config) {
	t.Helper()
	for h.part < historyParts {
		h.write(t)
	}
	i := start(t, cfg, nil)
	h.verify(t, h.kafka, settleWithin(t, h.kafka, 2*time.Minute, i))
}

// TestClusterLosesABroker kills one of three real brokers in the middle of a transaction: the one that leads a partition
// of an input, of the labels, the coordinator of the transaction, that of the group. The two that are left must bring
// everything to its end without it; it comes back then, and the next one goes. The last fault takes two at once: too few
// for a write to be safe, so that the joiner waits until they are back.
func TestClusterLosesABroker(t *testing.T) {
	c := streamtest.StartCluster(t, 3)
	kafka := c.Config()
	h, cfg := historyOn(t, 36, kafka)
	cl, err := kgo.NewClient(kgo.SeedBrokers(kafka.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	leader := func(topic string) func() int32 {
		return func() int32 {
			topics, err := adm.ListTopics(t.Context(), topic)
			if err != nil {
				t.Error(err)
			}
			return topics[topic].Partitions[0].Leader
		}
	}
	coordinator := func(of kadm.FindCoordinatorResponses, name string) int32 {
		if of[name].Err != nil {
			t.Error(of[name].Err)
		}
		return of[name].NodeID
	}
	faults := []struct {
		name string
		at   step
		node func() int32
		more int // how many others die with it
	}{
		{"leader of an input", stepPolled, leader(schemas.TopicImpressions), 0},
		{"leader of the labels", stepProducing, leader(schemas.TopicLabels), 0},
		{"coordinator of the transaction", stepCommit, func() int32 {
			return coordinator(adm.FindTxnCoordinators(t.Context(), cfg.TransactionalID), cfg.TransactionalID)
		}, 0},
		{"coordinator of the group", stepProducing, func() int32 {
			return coordinator(adm.FindGroupCoordinators(t.Context(), cfg.Group), cfg.Group)
		}, 0},
		{"two of three", stepCommit, leader(schemas.TopicLabels), 1},
	}
	var mu sync.Mutex // partitions produce side by side
	next, skip := -1, 0
	type deaths struct {
		nodes []int32
		at    time.Time
	}
	killed := make(chan deaths, 1)
	i := start(t, cfg, func(s step) error {
		mu.Lock()
		defer mu.Unlock()
		if next < 0 || s != faults[next].at {
			return nil
		}
		if skip--; skip > 0 { // not the first of its kind: something has been written before it
			return nil
		}
		f := faults[next]
		next = -1
		node := f.node()
		var d deaths
		for k := range 1 + int32(f.more) {
			if node > 0 {
				d.nodes = append(d.nodes, 1+(node-1+k)%3)
			}
		}
		d.at = time.Now()
		for _, n := range d.nodes {
			c.Brokers[n-1].Kill()
		}
		killed <- d
		return nil
	})
	settleWithin(t, kafka, 2*time.Minute, i) // it has its partitions, and the cluster has the topics of its own
	if warning, err := stream.CheckCopies(t.Context(), kafka, schemas.TopicLabels); err != nil || warning != "" {
		t.Errorf("the cluster keeps too few copies: %v %s", err, warning)
	}
	for k, f := range faults {
		mu.Lock()
		next, skip = k, 2
		mu.Unlock()
		written := make(chan struct{})
		go func() { // with two brokers gone the writes wait too
			defer close(written)
			h.write(t)
		}()
		var d deaths
		select {
		case d = <-killed:
		case <-time.After(time.Minute):
		}
		if d.nodes == nil {
			t.Fatalf("%s: nobody was killed", f.name)
		}
		if f.more == 0 { // the others go on alone
			<-written
			settleWithin(t, kafka, 2*time.Minute, i)
			t.Logf("%s: node %d was killed, all is joined without it %.1f s later", f.name, d.nodes[0], time.Since(d.at).Seconds())
		}
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-written
		settleWithin(t, kafka, 2*time.Minute, i)
	}
	for h.part < historyParts {
		h.write(t)
	}
	h.verify(t, kafka, settleWithin(t, kafka, 2*time.Minute, i))
}

// TestRealBrokerFaults stops, kills and stalls the real broker under a working joiner, in the middle of
// transactions. On one node that restarts both coordinators too.
func TestRealBrokerFaults(t *testing.T) {
	h, cfg := newOwnHistory(t, 31, nil)
	i := start(t, cfg, nil)
	for k := range historyParts {
		h.write(t)
		switch k % 4 {
		case 0:
			h.broker.Kill()
			if err := h.broker.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		case 1:
			if err := h.broker.Stop(); err != nil {
				t.Fatal(err)
			}
			if err := h.broker.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		case 2:
			if err := h.broker.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if err := h.broker.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		}
	}
	h.verify(t, h.kafka, settleWithin(t, h.kafka, 2*time.Minute, i))
}

// binaryDir holds the shipped binary once a test has built it.
var binaryDir string

func removeBinary() {
	if binaryDir != "" {
		_ = os.RemoveAll(binaryDir)
	}
}

// ctrloop is the shipped binary, built once.
var ctrloop = sync.OnceValues(func() (_ string, err error) {
	if binaryDir, err = os.MkdirTemp("", "ctrloop-binary-*"); err != nil {
		return "", err
	}
	return shipped.Build(binaryDir)
})

// joinerProcess is the shipped binary, joining only.
type joinerProcess struct {
	cmd  *exec.Cmd
	mu   sync.Mutex
	text bytes.Buffer
	done chan struct{}
}

// Write takes its log.
func (p *joinerProcess) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

func (p *joinerProcess) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

func (p *joinerProcess) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(-p.cmd.Process.Pid, s); err != nil {
		t.Fatal(err)
	}
}

// end stops it in order, or with kill -9, and waits for its end.
func (p *joinerProcess) end(s syscall.Signal) {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGCONT)
	_ = syscall.Kill(-p.cmd.Process.Pid, s)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
}

// spawn starts the binary with a configuration that says what cfg says.
func spawn(t *testing.T, cfg Config) *joinerProcess {
	t.Helper()
	path, err := ctrloop()
	if err != nil {
		t.Fatal(err)
	}
	k := cfg.Kafka
	yaml := fmt.Sprintf("kafka:\n  brokers: [%q]\n  partitions: %d\n  retention: -1s\n", k.Brokers[0], historyPartitions)
	if k.TLS.Enabled {
		yaml += fmt.Sprintf(
			"  tls: {enabled: true, ca_file: %q}\n  sasl: {mechanism: %s, user: %s, password_file: %q}\n",
			k.TLS.CAFile,
			k.SASL.Mechanism,
			k.SASL.User,
			k.SASL.PasswordFile,
		)
	}
	yaml += fmt.Sprintf("joiner: {window: %s, lateness: %s, bucket: %s, commit_interval: 20ms, max_poll: %d, instance_id: %s}\n"+
		"ingest: {user_salt: of-this-test}\n",
		cfg.Window, cfg.Lateness, cfg.Bucket, 100, cfg.InstanceID)
	file := filepath.Join(t.TempDir(), "ctrloop.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o644); err != nil {
		t.Fatal(err)
	}
	p := &joinerProcess{done: make(chan struct{})}
	p.cmd = exec.Command(path, "up", "--dir", t.TempDir(), "--target", "joiner", "--config", file)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	t.Cleanup(func() { p.end(syscall.SIGKILL) })
	return p
}

// progress is the sum of the group's committed offsets.
func progress(t *testing.T, cfg Config) (n int64) {
	t.Helper()
	at, err := stream.CommittedOffsets(t.Context(), cfg.Kafka, cfg.Group)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range at {
		n += c.Offset
	}
	return n
}

// awaitProgress waits until more is committed than was.
func awaitProgress(t *testing.T, cfg Config, was int64, ps ...*joinerProcess) int64 {
	t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for time.Now().Before(deadline) {
		if n := progress(t, cfg); n > was {
			return n
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, p := range ps {
		t.Log(p.log())
	}
	t.Fatalf("nothing was committed beyond %d", was)
	return 0
}

// TestBinarySurvivesKillNine kills the shipped binary at random moments while it works against the real broker.
func TestBinarySurvivesKillNine(t *testing.T) {
	h, cfg := newHistory(t, 32)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	was := int64(0)
	for range historyParts {
		h.write(t)
		p := spawn(t, cfg)
		awaitProgress(t, cfg, was, p)
		time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond) // somewhere in its transactions
		p.end(syscall.SIGKILL)
		was = progress(t, cfg)
	}
	h.finish(t, cfg)
}

// TestBinaryZombieIsFenced stops the shipped binary with SIGSTOP in the middle of its work, lets another one with the
// same ids take over, and wakes the first: what it had in hand must not get in.
func TestBinaryZombieIsFenced(t *testing.T) {
	h, cfg := newHistory(t, 33)
	h.write(t)
	h.write(t)
	zombie := spawn(t, cfg)
	was := awaitProgress(t, cfg, 0, zombie)
	zombie.signal(t, syscall.SIGSTOP)
	h.write(t)
	h.write(t)
	second := spawn(t, cfg)
	awaitProgress(t, cfg, was, zombie, second)
	zombie.signal(t, syscall.SIGCONT)
	deadline := time.Now().Add(time.Minute)
	for !fencedIn(zombie.log()) {
		if time.Now().After(deadline) {
			t.Fatalf("the zombie was not fenced:\n%s", zombie.log())
		}
		time.Sleep(20 * time.Millisecond)
	}
	zombie.end(syscall.SIGKILL)
	second.end(syscall.SIGTERM)
	h.finish(t, cfg)
}

// fencedIn says whether a log tells of being fenced, by the group or by the transaction coordinator.
func fencedIn(log string) bool {
	for _, word := range []string{
		"FENCED_INSTANCE_ID", "INVALID_PRODUCER_EPOCH", "PRODUCER_FENCED", "INVALID_PRODUCER_ID_MAPPING", "ILLEGAL_GENERATION",
		"UNKNOWN_MEMBER_ID",
	} {
		if strings.Contains(log, word) {
			return true
		}
	}
	return false
}

// TestTwoBinariesWithOneID runs two instances that somebody gave the same ids: they throw one another out, and every
// label is there once all the same.
func TestTwoBinariesWithOneID(t *testing.T) {
	h, cfg := newHistory(t, 34)
	h.write(t)
	first, second := spawn(t, cfg), spawn(t, cfg)
	was := int64(0)
	for range historyParts - 2 {
		h.write(t)
		was = awaitProgress(t, cfg, was, first, second)
	}
	if !fencedIn(first.log()) && !fencedIn(second.log()) {
		t.Errorf("neither was fenced:\n%s\n%s", first.log(), second.log())
	}
	first.end(syscall.SIGTERM)
	second.end(syscall.SIGTERM)
	h.finish(t, cfg)
}

// TestBinaryOverTLSAndSASL joins over an encrypted connection as a user with a password; with a wrong one the binary
// ends at once and says why.
func TestBinaryOverTLSAndSASL(t *testing.T) {
	streamtest.NeedProcess(t)
	dir := t.TempDir()
	ca, server, err := kafkatest.WriteCertificates(dir)
	if err != nil {
		t.Fatal(err)
	}
	h, plain := newOwnHistory(t, 35, &kafkatest.Secure{PEMFile: server, Users: map[string]string{"joiner": "s3cret"}})
	password := func(text string) string {
		file := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	cfg := plain
	cfg.Kafka.Brokers = []string{h.broker.SecureAddress()}
	cfg.Kafka.TLS = stream.TLS{Enabled: true, CAFile: ca}
	cfg.Kafka.SASL = stream.SASL{Mechanism: "SCRAM-SHA-512", User: "joiner", PasswordFile: password("s3cret\n")}
	h.write(t)
	p := spawn(t, cfg)
	was := awaitProgress(t, plain, 0, p)
	h.write(t)
	awaitProgress(t, plain, was, p)
	p.end(syscall.SIGTERM)
	h.finish(t, cfg)

	cfg.Kafka.SASL.PasswordFile = password("guess")
	p = spawn(t, cfg)
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		t.Fatalf("it goes on with a wrong password:\n%s", p.log())
	}
	if p.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(p.log(), "SASL_AUTHENTICATION_FAILED") {
		t.Errorf("exit %d:\n%s", p.cmd.ProcessState.ExitCode(), p.log())
	}
}
