package sink

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/internal/warehouse"
	"ctrloop/schemas"
)

// trouble is what a proxy does to a connection once enough of an insert has passed.
type trouble int

const (
	healthy    trouble = iota
	refused            // closed at once
	cut                // both directions reset
	halfClosed         // the server hears everything, the client an end of file
	stalled            // the server hears everything, the client nothing
	troubles
)

func (t trouble) String() string {
	return [troubles]string{"healthy", "refused", "cut", "halfClosed", "stalled"}[t]
}

// proxy stands between the sink and ClickHouse.
type proxy struct {
	listener net.Listener
	server   string
	mu       sync.Mutex
	next     func() (trouble, int) // for the next connection, and after how many bytes to the server
	hits     map[trouble]int
	open     []net.Conn
}

// startProxy returns a proxy before an engine, and a database through it.
func startProxy(t *testing.T, db string, next func() (trouble, int)) (*proxy, *warehouse.DB) {
	t.Helper()
	dsn, err := url.Parse(engine(t).DSN())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, server: dsn.Host, next: func() (trouble, int) { return healthy, 0 }, hits: map[trouble]int{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.carry(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		for _, c := range p.open {
			c.Close()
		}
		p.mu.Unlock()
		wg.Wait()
	})
	dsn.Host, dsn.Path = l.Addr().String(), "/"+db
	through, err := warehouse.Open(t.Context(), dsn.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = through.Close() })
	p.mu.Lock()
	p.next = next
	p.mu.Unlock()
	return p, through
}

func (p *proxy) hit(what trouble) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hits[what]++
}

func (p *proxy) carry(client *net.TCPConn) {
	defer client.Close()
	p.mu.Lock()
	what, after := p.next()
	p.mu.Unlock()
	if what == refused {
		p.hit(refused)
		return
	}
	c, err := net.Dial("tcp", p.server)
	if err != nil {
		return
	}
	server := c.(*net.TCPConn)
	defer server.Close()
	p.mu.Lock()
	p.open = append(p.open, client, server)
	p.mu.Unlock()
	var mute sync.Mutex // held: nothing goes to the client any more
	var answers sync.WaitGroup
	answers.Go(func() {
		buf := make([]byte, 32<<10)
		for {
			n, err := server.Read(buf)
			mute.Lock()
			if n > 0 {
				_, _ = client.Write(buf[:n])
			}
			mute.Unlock()
			if err != nil {
				_ = client.CloseWrite()
				return
			}
		}
	})
	buf := make([]byte, 1<<10)
	for passed := 0; ; {
		n, err := client.Read(buf)
		if n > 0 {
			if _, err := server.Write(buf[:n]); err != nil {
				break
			}
		}
		if err != nil {
			_ = server.CloseWrite()
			break
		}
		if passed += n; what == healthy || passed < after {
			continue
		}
		p.hit(what)
		if what == cut {
			_, _ = client.SetLinger(0), server.SetLinger(0)
			break
		}
		mute.Lock() // for good
		if what == halfClosed {
			_ = client.CloseWrite()
		}
		_, _ = io.Copy(server, client) // the insert is applied, nobody hears of it
		_ = server.Close()
		mute.Unlock()
		break
	}
	_ = server.Close()
	answers.Wait()
}

func databaseName(t *testing.T) string {
	return "test_" + strings.ToLower(strings.NewReplacer("/", "_", " ", "_").Replace(t.Name()))
}

// The network between sink and ClickHouse fails in each way, at any byte of an insert.
func TestNetworkFaults(t *testing.T) {
	for what := refused; what < troubles; what++ {
		t.Run(what.String(), func(t *testing.T) {
			b := streamtest.Start(t, 2)
			db := database(t, engine(t))
			records, want := labels(rand.New(rand.NewPCG(20, uint64(what))), 2, 12_000)
			streamtest.Produce(t, b.Config, records...)
			rng, left := rand.New(rand.NewPCG(21, 21)), 8
			p, through := startProxy(t, databaseName(t), func() (trouble, int) {
				// Behind the hello (1 KB); an insert of 1,000 rows is about 90 KB.
				if left--; left < 0 {
					return healthy, 0
				}
				return what, 2_000 + rng.IntN(150_000)
			})
			cfg := testConfig(b)
			cfg.InsertTimeout = 300 * time.Millisecond
			s := newService(t, cfg, through)
			stop := start(t, s)
			drain(t, s)
			stop()
			check(t, db, want)
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.hits[what] < 3 {
				t.Errorf("%v hit %d connections: the test proves little", what, p.hits[what])
			}
		})
	}
}

// ClickHouse is away for longer than any retry: session after session gives up, and the group's hold on its
// partitions with it.
func TestClickHouseDownForMinutes(t *testing.T) {
	b := streamtest.Start(t, 2)
	db := database(t, engine(t))
	records, want := labels(rand.New(rand.NewPCG(22, 22)), 2, 6000)
	streamtest.Produce(t, b.Config, records...)
	var mu sync.Mutex
	down := true
	_, through := startProxy(t, databaseName(t), func() (trouble, int) {
		mu.Lock()
		defer mu.Unlock()
		if down {
			return refused, 0
		}
		return healthy, 0
	})
	s := newService(t, testConfig(b), through)
	stop := start(t, s)
	wait(t, "failed sessions", func() bool { return testutil.ToFloat64(s.metrics.sessions) >= 6 })
	mu.Lock()
	down = false
	mu.Unlock()
	drain(t, s)
	stop()
	check(t, db, want)
}

// answerless applies blocks and loses every answer while lose says so.
type answerless struct {
	*warehouse.DB
	lose func() bool
}

func (a answerless) InsertLabelBlock(ctx context.Context, token string, b *warehouse.LabelBlock, n int) error {
	if err := a.DB.InsertLabelBlock(ctx, token, b, n); err != nil {
		return err
	}
	if a.lose() {
		return errFault
	}
	return nil
}

// The engine forgets the tokens while a block is unanswered: it comes in twice, and the table's key makes one of
// it (second belt). The audit sees what FINAL sees.
func TestTokensForgotten(t *testing.T) {
	for name, forget := range map[string]func(*testing.T, *warehouse.DB){
		"dedup log lost": func(t *testing.T, db *warehouse.DB) {
			var path string
			if err := db.QueryRow(t.Context(),
				"SELECT data_paths[1] FROM system.tables WHERE database = currentDatabase() AND name = 'labels'").Scan(&path); err != nil {
				t.Fatal(err)
			}
			exec1(t, db, "DETACH TABLE labels")
			logs := filepath.Join(path, "deduplication_logs")
			if _, err := os.Stat(logs); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(logs); err != nil {
				t.Fatal(err)
			}
			exec1(t, db, "ATTACH TABLE labels")
		},
		"window overflowed": func(t *testing.T, db *warehouse.DB) {
			exec1(t, db, "ALTER TABLE labels MODIFY SETTING non_replicated_deduplication_window = 1")
			for i := range 3 { // into both days of the traffic, the same rows: they replace each other
				row := warehouse.LabelRow{Impression: schemas.NewImpressionID(time.Date(2026, 3, 1, 23, 0, 0, 0, time.UTC), [10]byte{1}), Version: 1,
					Product: "p", Partition: 9}
				next := row
				next.Impression = schemas.NewImpressionID(time.Date(2026, 3, 2, 1, 0, 0, 0, time.UTC), [10]byte{2})
				if err := db.InsertLabels(t.Context(), fmt.Sprint("between ", i), []warehouse.LabelRow{row, next}); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := streamtest.Start(t, 1)
			db := database(t, engine(t))
			records, want := labels(rand.New(rand.NewPCG(23, 23)), 1, 2500)
			streamtest.Produce(t, b.Config, records...)
			exec1(t, db, "SYSTEM STOP MERGES labels")
			lost := make(chan struct{})
			var once sync.Once
			first := newService(t, testConfig(b), answerless{db, func() bool { once.Do(func() { close(lost) }); return true }})
			first.backoff = time.Hour // dead after the first session
			first.giveUp = 0
			stop := start(t, first)
			<-lost
			stop()
			forget(t, db)
			exec1(t, db, "SYSTEM STOP MERGES labels") // again: the table was attached anew
			second := newService(t, testConfig(b), db)
			stop = start(t, second)
			drain(t, second)
			stop()
			var raw uint64
			if err := db.QueryRow(t.Context(), "SELECT count() FROM labels").Scan(&raw); err != nil {
				t.Fatal(err)
			}
			if raw <= want.rows {
				t.Errorf("%d rows as they lie there, %d labels: the token was not forgotten, the test proves nothing", raw, want.rows)
			}
			exec1(t, db, "SYSTEM START MERGES labels")
			exec1(t, db, "ALTER TABLE labels DELETE WHERE partition = 9 SETTINGS mutations_sync = 2")
			exec1(t, db, "OPTIMIZE TABLE labels FINAL")
			check(t, db, want) // the raw table, after its merges
		})
	}
}

func exec1(t *testing.T, db *warehouse.DB, q string) {
	t.Helper()
	if err := db.Exec(t.Context(), q); err != nil {
		t.Fatal(err)
	}
}

// A block over three days is three parts. One of them was applied before the engine died: the same block again
// adds the other two, and a third time nothing.
func TestBlockAcrossPartitions(t *testing.T) {
	db := database(t, engine(t))
	var rows, first []warehouse.LabelRow
	for day := range 3 {
		for i := range 40 {
			r := warehouse.LabelRow{
				Impression: schemas.NewImpressionID(time.Date(2026, 3, 1+day, 23, i, 0, 0, time.UTC), [10]byte{byte(i)}),
				Version:    1,
				Product:    fmt.Sprint(i % 7),
				Weight:     1,
			}
			rows = append(rows, r)
			if day == 1 {
				first = append(first, r)
			}
		}
	}
	for i, insert := range [][]warehouse.LabelRow{first, rows, rows} {
		if err := db.InsertLabels(t.Context(), "across", insert); err != nil {
			t.Fatal(err)
		}
		var n uint64
		if err := db.QueryRow(t.Context(), "SELECT count() FROM labels").Scan(&n); err != nil {
			t.Fatal(err)
		}
		if want := []uint64{40, 120, 120}[i]; n != want {
			t.Errorf("insert %d: %d rows, want %d", i+1, n, want)
		}
	}
}

// An instance that is thought dead finishes its insert after its partition has another owner, which has
// repeated the block and gone on.
func TestZombieInsert(t *testing.T) {
	b := streamtest.Start(t, 1)
	db := database(t, engine(t))
	records, want := labels(rand.New(rand.NewPCG(24, 24)), 1, 5000)
	streamtest.Produce(t, b.Config, records...)
	stuck, released := make(chan struct{}), make(chan struct{})
	z := &zombie{DB: db, stuck: stuck, released: released, done: make(chan error, 1)}
	old := newService(t, testConfig(b), z)
	old.backoff = time.Hour
	stopOld := start(t, old)
	<-stuck
	heir := newService(t, testConfig(b), db) // the same static member: the group fences the old one
	stop := start(t, heir)
	drain(t, heir)
	close(released)
	if err := <-z.done; err != nil {
		t.Errorf("the zombie's insert: %v: it never reached ClickHouse, the test proves nothing", err)
	}
	stopOld()
	stop()
	check(t, db, want)
}

type zombie struct {
	*warehouse.DB
	once            sync.Once
	stuck, released chan struct{}
	done            chan error
}

func (z *zombie) InsertLabelBlock(ctx context.Context, token string, b *warehouse.LabelBlock, n int) error {
	first := false
	z.once.Do(func() { first = true })
	if !first {
		return errFault
	}
	close(z.stuck)
	<-z.released
	err := z.DB.InsertLabelBlock(context.WithoutCancel(ctx), token, b, n)
	z.done <- err
	return err
}

// Environment of a sink in a process of its own, which kills itself.
const (
	childStepEnv   = "SINK_TEST_KILL_AT"
	childBrokerEnv = "SINK_TEST_BROKER"
	childDSNEnv    = "SINK_TEST_DSN"
)

// killedChild runs a sink that dies by SIGKILL at a step; it returns only on an error.
func killedChild() error {
	ctx := context.Background()
	db, err := warehouse.Open(ctx, os.Getenv(childDSNEnv))
	if err != nil {
		return err
	}
	cfg := Default()
	cfg.Kafka = stream.Default()
	cfg.Kafka.Brokers = []string{os.Getenv(childBrokerEnv)}
	cfg.MaxRows, cfg.MaxBufferedRows, cfg.FlushInterval = 1000, 4000, 20*time.Millisecond
	s, err := New(cfg, db, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		return err
	}
	breakOff(s, func(at step) error {
		if at == step(os.Getenv(childStepEnv)) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	})
	return s.Run(ctx)
}

// A process is killed by SIGKILL after each step, twice each; another one goes on.
func TestProcessKilledAtEachStep(t *testing.T) {
	b := streamtest.Start(t, 1)
	db := database(t, engine(t))
	records, want := labels(rand.New(rand.NewPCG(25, 25)), 1, 9000)
	streamtest.Produce(t, b.Config, records...)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dsn := strings.Replace(engine(t).DSN(), "/"+warehouse.Database+"?", "/"+databaseName(t)+"?", 1)
	for _, at := range []step{stepIntent, stepInserted, stepCommitted, stepIntent, stepInserted} {
		cmd := exec.CommandContext(t.Context(), self, "-test.run", "^$")
		cmd.Env = append(os.Environ(), childStepEnv+"="+string(at), childBrokerEnv+"="+b.Config.Brokers[0], childDSNEnv+"="+dsn)
		out, err := cmd.CombinedOutput()
		status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
			t.Fatalf("the child at %s ended with %v: %s", at, err, out)
		}
	}
	s := newService(t, testConfig(b), db)
	stop := start(t, s)
	drain(t, s)
	stop()
	check(t, db, want)
}
