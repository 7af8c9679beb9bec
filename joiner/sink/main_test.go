package sink

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-faster/city"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"google.golang.org/protobuf/proto"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/internal/warehouse"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

var shared struct {
	engine *warehouse.Engine
	err    error
}

func TestMain(m *testing.M) {
	warehouse.MaybeChild()
	if os.Getenv(childStepEnv) != "" {
		fmt.Fprintln(os.Stderr, killedChild())
		os.Exit(1)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sink-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	shared.engine, shared.err = warehouse.StartEngine(ctx, warehouse.EngineConfig{Lib: warehouse.LibPath(), Dir: dir}, zerolog.Nop())
	cancel()
	code := m.Run()
	if shared.engine != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := shared.engine.Stop(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

func engine(t testing.TB) *warehouse.Engine {
	t.Helper()
	if errors.Is(shared.err, warehouse.ErrUnavailable) && os.Getenv("CTRLOOP_TEST_ALLOW_MISSING") == "1" {
		t.Skip(shared.err)
	}
	if shared.err != nil {
		t.Fatalf("%v (CTRLOOP_TEST_ALLOW_MISSING=1 skips)", shared.err)
	}
	return shared.engine
}

// database is a migrated database of the test's own.
func database(t testing.TB, e *warehouse.Engine) *warehouse.DB {
	t.Helper()
	name := "test_" + strings.ToLower(strings.NewReplacer("/", "_", " ", "_").Replace(t.Name()))
	db, err := warehouse.Open(t.Context(), strings.Replace(e.DSN(), "/"+warehouse.Database+"?", "/"+name+"?", 1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if err := db.Migrate(t.Context(), warehouse.Options{}); err != nil {
		t.Fatal(err)
	}
	return db
}

// truth is what was produced.
type truth struct {
	rows     uint64
	xor, sum uint64
}

// labels makes n labels over the partitions, with the audit that a joiner would write, and every
// thousandth with a correction.
func labels(rng *rand.Rand, partitions int32, n int) (records []*stream.Record, want truth) {
	type minute struct {
		partition int32
		ms        int64
	}
	audit := map[minute]*eventpb.AuditMinute{}
	start := time.Date(2026, 3, 1, 23, 50, 0, 0, time.UTC).UnixMilli()
	for i := range n {
		ms := start + int64(i)*1_200_000/int64(n)
		var random [10]byte
		for j := range random {
			random[j] = byte(rng.Uint32())
		}
		id := schemas.NewImpressionID(time.UnixMilli(ms), random)
		product := rng.IntN(170)
		imp := &eventpb.Impression{
			Id:           id[:],
			User:         rng.Uint64(),
			Product:      fmt.Sprintf("product-%d", product),
			Creative:     fmt.Sprintf("c-%016x", product*7+rng.IntN(8)),
			Placement:    "feed",
			Position:     1,
			Campaign:     "spring",
			Category:     fmt.Sprintf("home/k%d", product%44),
			Experiment:   "x1",
			Variant:      "control",
			ModelVersion: "prompt-1",
			Policy:       "thompson",
			Propensity:   rng.Float64(),
			ArmShare:     []float64{0, 0.1, 0.5}[rng.IntN(3)],
			Schema:       1,
			Bot:          i%11 == 0,
		}
		raw, err := proto.Marshal(imp)
		if err != nil {
			panic(err)
		}
		p := int32(rng.IntN(int(partitions)))
		kind := eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE
		if rng.IntN(20) == 0 {
			kind = eventpb.LabelKind_LABEL_KIND_POSITIVE
		}
		for v := uint32(1); v == 1 || v == 2 && i%1000 == 0; v++ {
			if v == 2 {
				kind = eventpb.LabelKind_LABEL_KIND_CORRECTED
			}
			value, err := proto.Marshal(
				&eventpb.Label{
					Impression:  raw,
					Kind:        kind,
					Clicked:     kind != eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE,
					WatermarkMs: ms / 250 * 250,
					Version:     v,
					Weight:      1,
					Suspect:     i%7 == 0,
				},
			)
			if err != nil {
				panic(err)
			}
			records = append(records, &stream.Record{Topic: schemas.TopicLabels, Partition: p, Value: value, Timestamp: time.UnixMilli(ms)})
			h := city.CH64(id[:])
			want.rows, want.xor, want.sum = want.rows+1, want.xor^h, want.sum+h
			k := minute{p, ms / 60_000 * 60_000}
			if audit[k] == nil {
				audit[k] = &eventpb.AuditMinute{Partition: p, MinuteMs: k.ms}
			}
			audit[k].Labels++
			audit[k].HashXor ^= h
			audit[k].HashSum += h
			if kind != eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE {
				audit[k].Positive++
			}
		}
	}
	for _, a := range audit {
		value, err := proto.Marshal(a)
		if err != nil {
			panic(err)
		}
		records = append(records, &stream.Record{Topic: schemas.TopicAudit, Partition: a.Partition, Value: value})
	}
	return records, want
}

func testConfig(b *streamtest.Broker) Config {
	cfg := Default()
	cfg.Kafka, cfg.MaxRows, cfg.MaxBufferedRows, cfg.FlushInterval = b.Config, 1000, 4000, 20*time.Millisecond
	return cfg
}

func newService(t testing.TB, cfg Config, db Warehouse) *Service {
	t.Helper()
	s, err := New(cfg, db, zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.ErrorLevel), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	s.backoff, s.giveUp = time.Millisecond, 50*time.Millisecond
	return s
}

// start runs a service until the returned function is called.
func start(t testing.TB, s *Service) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var stopped atomic.Bool
	stop = func() {
		if stopped.Swap(true) {
			return
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// drain waits until everything in the broker is in the warehouse.
func drain(t testing.TB, s *Service) {
	t.Helper()
	wait(t, "end of the lag", func() bool {
		lag, err := s.Lag(t.Context())
		return err == nil && lag == 0
	})
}

func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// check compares the raw table, duplicates and all, with what was produced: ReplacingMergeTree must not
// be needed. The audit compares it minute by minute.
func check(t testing.TB, db *warehouse.DB, want truth) {
	t.Helper()
	var got truth
	if err := db.QueryRow(t.Context(),
		"SELECT count(), groupBitXor(cityHash64(UUIDToNum(impression_id))), "+
			"sum(cityHash64(UUIDToNum(impression_id))) FROM labels").Scan(&got.rows, &got.xor, &got.sum); err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("labels: %+v, want %+v", got, want)
	}
	var minutes, differ uint64
	if err := db.QueryRow(t.Context(), "SELECT (SELECT count() FROM audit FINAL), (SELECT count() FROM audit_mismatch)").Scan(&minutes,
		&differ); err != nil {
		t.Fatal(err)
	}
	if minutes == 0 || differ != 0 {
		t.Errorf("%d of %d audited minutes differ", differ, minutes)
	}
}

func kill(pid int) { _ = syscall.Kill(pid, syscall.SIGKILL) }
