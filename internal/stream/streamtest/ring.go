package streamtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"ctrloop/internal/setup"
	"ctrloop/internal/stream"
	"ctrloop/internal/stream/kafkatest"
)

// RingEnv chooses the broker behind Start and StartTopics: empty is the one in process, and a Ring another one.
// `make kafka-ring` and `make kafka-ring-containers` set it: the same test bodies then meet a real broker.
const RingEnv = "CTRLOOP_TEST_KAFKA"

// RingKind is a value of RingEnv.
type RingKind string

// Where the real broker comes from.
const (
	RingReal      RingKind = "real"      // its jars: a process, which tests may kill
	RingContainer RingKind = "container" // its image, under a container engine
)

// Ring says whether tests run against a real broker.
func Ring() bool { return ringKind() != "" }

func ringKind() RingKind {
	switch kind := RingKind(os.Getenv(RingEnv)); kind {
	case "", RingReal, RingContainer:
		return kind
	default:
		panic(fmt.Sprintf("%s=%q: want %q, %q or nothing", RingEnv, kind, RingReal, RingContainer))
	}
}

// NeedFake skips a test in the ring that scripts the faults of the broker in process.
func NeedFake(t testing.TB) {
	t.Helper()
	if Ring() {
		t.Skip("needs the fault scripts of the broker in process")
	}
}

// NeedReal skips a test outside the ring that only a real broker can pass.
func NeedReal(t testing.TB) {
	t.Helper()
	if !Ring() {
		t.Skip("needs a real broker: run `make kafka-ring`")
	}
}

// NeedProcess skips a test that does to a real broker what only its parent process can: kill it, stall it, start it on
// its data again, give it certificates.
func NeedProcess(t testing.TB) {
	t.Helper()
	if ringKind() != RingReal {
		t.Skip("needs a real broker in a process of its own: run `make kafka-ring`")
	}
}

// StartReal starts a real broker that belongs to the test alone, which may stop, kill and start it again. It skips
// the test where NeedProcess does, and with the reason where Java or the jars are missing.
func StartReal(t testing.TB, secure *kafkatest.Secure) *kafkatest.Broker {
	t.Helper()
	NeedProcess(t)
	b, err := startReal(t.Context(), t.TempDir(), secure)
	if errors.Is(err, kafkatest.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Kill)
	return b
}

// StartCluster starts n real brokers that belong to the test alone; else it is like StartReal. Each takes some 0.4 GB.
func StartCluster(t testing.TB, n int) *kafkatest.Cluster {
	t.Helper()
	NeedProcess(t)
	home, err := setup.Home("")
	if err != nil {
		t.Fatal(err)
	}
	c, err := kafkatest.NewCluster(t.Context(), kafkatest.Options{Home: home, Dir: t.TempDir(), Heap: "256m", Fast: true}, n)
	if errors.Is(err, kafkatest.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Kill)
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func startReal(ctx context.Context, dir string, secure *kafkatest.Secure) (*kafkatest.Broker, error) {
	home, err := setup.Home("")
	if err != nil {
		return nil, err
	}
	b, err := kafkatest.New(ctx, kafkatest.Options{Home: home, Dir: dir, Fast: true, Secure: secure})
	if err != nil {
		return nil, err
	}
	return b, b.Start(ctx)
}

// realBroker is one from the jars or in a container.
type realBroker interface {
	Config() stream.Config
	Stop() error
	Kill()
}

// idle holds the real brokers of this test process that no test uses: a start takes seconds, emptying one does not.
var idle struct {
	sync.Mutex
	brokers []realBroker
	dirs    []string
	leases  chan struct{}
	held    map[string]int // by test
}

// maxReal bounds the brokers that run side by side, at 0.5 GB each. Parallel tests wait for one another; a test that
// has one and asks for more does not wait, since nobody but itself could end the wait.
const maxReal = 2

// lease gives the test a real broker without topics or groups, for as long as it runs.
func lease(t testing.TB) stream.Config {
	t.Helper()
	idle.Lock()
	if idle.leases == nil {
		idle.leases, idle.held = make(chan struct{}, maxReal), map[string]int{}
	}
	idle.held[t.Name()]++
	first := idle.held[t.Name()] == 1
	idle.Unlock()
	if first {
		idle.leases <- struct{}{}
	}
	release := func() {
		idle.Lock()
		defer idle.Unlock()
		if idle.held[t.Name()]--; first {
			<-idle.leases
		}
	}
	b, err := takeReal()
	if err != nil {
		release()
		if errors.Is(err, kafkatest.ErrMissing) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer release()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := empty(ctx, b.Config()); err != nil {
			t.Logf("the broker is thrown away: %v", err)
			b.Kill()
			return
		}
		idle.Lock()
		defer idle.Unlock()
		idle.brokers = append(idle.brokers, b)
	})
	return b.Config()
}

func takeReal() (realBroker, error) {
	idle.Lock()
	if n := len(idle.brokers); n > 0 {
		b := idle.brokers[n-1]
		idle.brokers = idle.brokers[:n-1]
		idle.Unlock()
		return b, nil
	}
	idle.Unlock()
	dir, err := os.MkdirTemp("", "ctrloop-kafka-*")
	if err != nil {
		return nil, err
	}
	idle.Lock()
	idle.dirs = append(idle.dirs, dir)
	idle.Unlock()
	if ringKind() == RingContainer {
		path, err := starter()
		if err != nil {
			return nil, err
		}
		return kafkatest.StartContainer(context.Background(), path)
	}
	return startReal(context.Background(), filepath.Join(dir, "kafka"), nil)
}

// starter is the program that starts containers, built once for all brokers of this test process.
var starter = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "ctrloop-starter-*")
	if err != nil {
		return "", err
	}
	idle.Lock()
	idle.dirs = append(idle.dirs, dir)
	idle.Unlock()
	path := filepath.Join(dir, "starter")
	return path, kafkatest.BuildStarter(context.Background(), path)
})

// M wraps *testing.M for packages whose tests use brokers: it stops the real ones at the end. Use it in TestMain.
type M struct {
	*testing.M
	// After runs at the end too; nil: nothing.
	After func()
}

// Run runs the tests.
func (m M) Run() int {
	code := m.M.Run()
	if m.After != nil {
		m.After()
	}
	idle.Lock()
	defer idle.Unlock()
	for _, b := range idle.brokers {
		if err := b.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	for _, dir := range idle.dirs {
		_ = os.RemoveAll(dir)
	}
	return code
}

// empty takes everything from a broker that a test has left: open transactions, groups with their members, topics.
func empty(ctx context.Context, c stream.Config) error {
	// The client answers from what it knows for this long: the default of 5 s would be the time of each test.
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.Brokers...), kgo.MetadataMinAge(20*time.Millisecond))
	if err != nil {
		return err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	if err := fence(ctx, adm, c); err != nil {
		return fmt.Errorf("end transactions: %w", err)
	}
	if err := dropGroups(ctx, cl, adm); err != nil {
		return fmt.Errorf("drop groups: %w", err)
	}
	return dropTopics(ctx, adm)
}

// fence ends the transactions that are open, as a new owner of their ids would.
func fence(ctx context.Context, adm *kadm.Client, c stream.Config) error {
	open, err := adm.ListTransactions(ctx, nil, []string{"Ongoing", "PrepareCommit", "PrepareAbort", "PrepareEpochFence"})
	if err != nil {
		return err
	}
	for id := range open {
		cl, err := kgo.NewClient(kgo.SeedBrokers(c.Brokers...), kgo.TransactionalID(id))
		if err != nil {
			return err
		}
		_, _, err = cl.ProducerID(ctx)
		cl.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
	}
	return nil
}

func dropGroups(ctx context.Context, cl *kgo.Client, adm *kadm.Client) error {
	listed, err := adm.ListGroups(ctx)
	if err != nil || len(listed) == 0 {
		return err
	}
	groups, err := adm.DescribeGroups(ctx, listed.Groups()...)
	if err != nil {
		return err
	}
	for _, g := range groups {
		r := kmsg.NewLeaveGroupRequest()
		r.Group = g.Group
		for _, m := range g.Members {
			member := kmsg.NewLeaveGroupRequestMember()
			member.MemberID, member.InstanceID = m.MemberID, m.InstanceID
			r.Members = append(r.Members, member)
		}
		if len(r.Members) > 0 {
			if _, err := r.RequestWith(ctx, cl); err != nil {
				return err
			}
		}
	}
	for {
		deleted, err := adm.DeleteGroups(ctx, listed.Groups()...)
		if err != nil {
			return err
		}
		err = deleted.Error()
		switch {
		case err == nil, errors.Is(err, kerr.GroupIDNotFound):
			return nil
		case !errors.Is(err, kerr.NonEmptyGroup):
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

func dropTopics(ctx context.Context, adm *kadm.Client) error {
	for {
		topics, err := adm.ListTopics(ctx) // without the internal ones
		if err != nil || len(topics) == 0 {
			return err
		}
		deleted, err := adm.DeleteTopics(ctx, topics.Names()...)
		if err != nil {
			return err
		}
		if err := deleted.Error(); err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(20 * time.Millisecond):
		return nil
	}
}
