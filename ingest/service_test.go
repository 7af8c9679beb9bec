package ingest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"google.golang.org/protobuf/proto"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

func testID(ms int64, n uint64) schemas.ImpressionID {
	var r [10]byte
	binary.BigEndian.PutUint64(r[2:], n)
	return schemas.NewImpressionID(time.UnixMilli(ms), r)
}

func testImpression(ms int64, n uint64) *eventpb.Impression {
	id := testID(ms, n)
	return &eventpb.Impression{
		Id:           id[:],
		User:         n,
		Product:      "p",
		Creative:     "c-1",
		Placement:    "feed",
		Position:     1,
		Category:     "a/b",
		Variant:      "control",
		ModelVersion: "prompt-1",
		Propensity:   0.25,
		Schema:       1,
	}
}

func testClick(impressionMS int64, n uint64, at int64) *eventpb.Click {
	id := testID(impressionMS, n)
	return &eventpb.Click{ImpressionId: id[:], Id: []byte("k"), TimeMs: at, Schema: 1}
}

func rawValue(t testing.TB, m proto.Message) []byte {
	t.Helper()
	k := map[string]kind{"*eventpb.Impression": impression, "*eventpb.Click": click, "*eventpb.Punctuation": watermark}[fmt.Sprintf("%T", m)]
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return append(slices.Clone(rawHeaders[k]), b...)
}

func watermarks(t testing.TB, partitions int32, ms int64) []*stream.Record {
	var rs []*stream.Record
	for _, topic := range []string{schemas.TopicRawImpressions, schemas.TopicRawClicks} {
		for p := range partitions {
			rs = append(rs, &stream.Record{Topic: topic, Partition: p, Value: rawValue(t, &eventpb.Punctuation{LowWatermarkMs: ms})})
		}
	}
	return rs
}

func testConfig() Config {
	c := Default()
	c.Clock = ClockEvent
	c.Merge.CommitInterval = 10 * time.Millisecond
	c.Merge.PunctuateEvery = 20 * time.Millisecond
	return c
}

// runUntil runs the service until every partition of imp.v1 and clk.v1 has the punctuation `until`.
func runUntil(t *testing.T, b *streamtest.Broker, s *Service, partitions int32, until int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for _, topic := range []string{schemas.TopicImpressions, schemas.TopicClicks} {
		for p := range partitions {
			err := stream.Tail(ctx, b.Config, topic, p, -1, func(r *stream.Record) error {
				if low, ok := punctuation(t, r); ok && low >= until {
					return errFound
				}
				return nil
			})
			if !errors.Is(err, errFound) {
				t.Fatalf("%s/%d never got the punctuation %d: %v", topic, p, until, err)
			}
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

var errFound = fmt.Errorf("found")

func punctuation(t *testing.T, r *stream.Record) (int64, bool) {
	for _, h := range r.Headers {
		if h.Key == schemas.HeaderPunctuation {
			var p eventpb.Punctuation
			if err := proto.Unmarshal(r.Value, &p); err != nil {
				t.Fatal(err)
			}
			if p.Parts > 0 && len(p.Covers) == 0 {
				return 0, true // the session says how many raw partitions there are
			}
			if p.Source == "" || p.Parts == 0 || len(p.Covers) != int(p.Parts) {
				t.Errorf("%v: want a promise of every raw partition, there is one instance", &p)
			}
			return p.LowWatermarkMs, true
		}
	}
	return 0, false
}

func newService(t *testing.T, b *streamtest.Broker, cfg Config) (*Service, *prometheus.Registry) {
	t.Helper()
	reg := prometheus.NewRegistry()
	s, err := New(cfg, b.Config, zerolog.New(zerolog.NewTestWriter(t)), reg)
	if err != nil {
		t.Fatal(err)
	}
	return s, reg
}

// world is what went into the raw topics.
type world struct {
	impressions, clicks map[string]int64 // id to event time
	records             []*stream.Record
	last                int64
}

// newWorld spreads n impressions over an hour, a tenth clicked, in JSON and protobuf, with partitions of
// the raw topics that have nothing to do with those of imp.v1.
func newWorld(t *testing.T, n int, rawPartitions int32) *world {
	rng := rand.New(rand.NewPCG(1, 2))
	w := &world{impressions: map[string]int64{}, clicks: map[string]int64{}}
	const start = 1_700_000_000_000
	put := func(topic string, value []byte) {
		w.records = append(w.records, &stream.Record{Topic: topic, Partition: int32(rng.IntN(int(rawPartitions))), Value: value})
	}
	for i := range n {
		ms := start + int64(i)*3_600_000/int64(n)
		w.last = max(w.last, ms)
		im := testImpression(ms, uint64(i))
		w.impressions[string(im.Id)] = ms
		if i%4 == 0 {
			id := testID(ms, uint64(i))
			put(schemas.TopicRawImpressions, []byte(fmt.Sprintf(`{"id":%q,"product":"p","creative":"c","user":"u%d","extra":1}`, id, i)))
		} else {
			put(schemas.TopicRawImpressions, rawValue(t, im))
		}
		if i%10 == 0 {
			w.clicks[string(im.Id)] = ms + 5
			put(schemas.TopicRawClicks, rawValue(t, testClick(ms, uint64(i), ms+5)))
			w.last = max(w.last, ms+5)
		}
	}
	return w
}

func (w *world) check(t *testing.T, b *streamtest.Broker, partitions int32) {
	t.Helper()
	for topic, want := range map[string]map[string]int64{schemas.TopicImpressions: w.impressions, schemas.TopicClicks: w.clicks} {
		seen := map[string]int{}
		for p, rs := range streamtest.Records(t, b.Config, topic) {
			low := int64(0)
			for _, r := range rs {
				if ms, ok := punctuation(t, r); ok {
					low = max(low, ms)
					continue
				}
				seen[string(r.Key)]++
				if got := r.Timestamp.UnixMilli(); got != want[string(r.Key)] {
					t.Fatalf("%s: record time %d, event time %d", topic, got, want[string(r.Key)])
				}
				if r.Timestamp.UnixMilli() < low {
					t.Fatalf("%s/%d: an event at %d after the promise of %d", topic, p, r.Timestamp.UnixMilli(), low)
				}
				if at := stream.PartitionOf(r.Key, partitions); at != p {
					t.Fatalf("%s: key in partition %d, want %d", topic, p, at)
				}
			}
		}
		for id := range want {
			if seen[id] != 1 {
				t.Fatalf("%s: event %x is there %d times", topic, id, seen[id])
			}
		}
		if len(seen) != len(want) {
			t.Fatalf("%s: %d events, want %d", topic, len(seen), len(want))
		}
	}
}

func TestEveryEventOnceInOrder(t *testing.T) {
	const partitions = 3
	b := streamtest.Start(t, partitions)
	w := newWorld(t, 20_000, partitions)
	streamtest.Produce(t, b.Config, w.records...)
	streamtest.Produce(t, b.Config, watermarks(t, partitions, w.last+60_000)...)
	cfg := testConfig()
	cfg.Merge.BufferEvents, cfg.Merge.TransactionEvents = 500, 1000 // so that pausing and many transactions happen
	s, reg := newService(t, b, cfg)
	runUntil(t, b, s, partitions, w.last+60_000)
	w.check(t, b, partitions)
	if n, err := testutil.GatherAndCount(reg); err != nil || n == 0 {
		t.Fatal(n, err)
	}
	routed := testutil.ToFloat64(s.metrics.routed.WithLabelValues("impression"))
	if routed != float64(len(w.impressions)) {
		t.Errorf("metric says %v impressions, want %d", routed, len(w.impressions))
	}
}

// Partition 0 holds the whole first half hour, partition 1 the second: read side by side they are half an
// hour apart, routed they must be in order.
func TestSkewedPartitionsStayInOrder(t *testing.T) {
	const partitions = 2
	b := streamtest.Start(t, partitions)
	w := newWorld(t, 20_000, partitions)
	for i, r := range w.records {
		r.Partition = int32(2 * i / len(w.records))
	}
	streamtest.Produce(t, b.Config, w.records...)
	streamtest.Produce(t, b.Config, watermarks(t, partitions, w.last+1)...)
	cfg := testConfig()
	cfg.Merge.BufferEvents, cfg.Merge.TransactionEvents = 300, 500
	s, _ := newService(t, b, cfg)
	runUntil(t, b, s, partitions, w.last+1)
	w.check(t, b, partitions)
	for p, rs := range streamtest.Records(t, b.Config, schemas.TopicImpressions) {
		if !slices.IsSortedFunc(rs, func(a, b *stream.Record) int { return a.Timestamp.Compare(b.Timestamp) }) {
			t.Errorf("imp.v1/%d is not in order", p)
		}
	}
}

func TestFaultsAndCrashesLoseAndDoubleNothing(t *testing.T) {
	for _, test := range []struct {
		name   string
		faults []kfake.Fault
	}{
		{"end: unknown server error", []kfake.Fault{{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.UnknownServerError, Count: 3}}},
		{"end: coordinator away", []kfake.Fault{{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.CoordinatorNotAvailable, Count: 2}}},
		{"offset commit refused", []kfake.Fault{{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.RebalanceInProgress, Count: 3}}},
		{"produce refused", []kfake.Fault{{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotLeaderForPartition, Count: 3}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			const partitions = 2
			b := streamtest.Start(t, partitions)
			w := newWorld(t, 6000, partitions)
			streamtest.Produce(t, b.Config, w.records...)
			streamtest.Produce(t, b.Config, watermarks(t, partitions, w.last+1)...)
			h := b.Cluster.Fault(test.faults...)
			cfg := testConfig()
			cfg.Merge.TransactionEvents = 500
			s, _ := newService(t, b, cfg)
			runUntil(t, b, s, partitions, w.last+1)
			w.check(t, b, partitions)
			if h.Hits() == 0 {
				t.Error("the fault never happened")
			}
		})
	}
}

// The service is cancelled again and again at any point of its work, as kill -9 would; each life goes on
// where the last commit was, watermark promises included.
func TestKilledAgainAndAgain(t *testing.T) {
	const partitions = 2
	b := streamtest.Start(t, partitions)
	w := newWorld(t, 8000, partitions)
	streamtest.Produce(t, b.Config, w.records...)
	streamtest.Produce(t, b.Config, watermarks(t, partitions, w.last+1)...)
	cfg := testConfig()
	cfg.Merge.TransactionEvents = 400
	lives := 0
	for ; lives < 12; lives++ {
		ctx, cancel := context.WithCancel(t.Context())
		s, _ := newService(t, b, cfg)
		// End this life at the n-th request of a transaction, whichever it is.
		n := 3 + 2*lives
		h := b.Cluster.Fault(
			kfake.Fault{Keys: []kmsg.Key{kmsg.Produce, kmsg.TxnOffsetCommit, kmsg.EndTxn}, Observe: true, Count: -1, When: func(kmsg.Request) bool {
				if n--; n == 0 {
					cancel()
				}
				return false
			}},
		)
		time.AfterFunc(3*time.Second, cancel) // when nothing is left to do
		if err := s.Run(ctx); err != nil {
			t.Fatal(err)
		}
		h.Remove()
	}
	s, _ := newService(t, b, cfg)
	runUntil(t, b, s, partitions, w.last+1)
	w.check(t, b, partitions)
}

func TestUnusableRecordsGoToDeadLetters(t *testing.T) {
	b := streamtest.Start(t, 1)
	future := time.Now().Add(time.Hour)
	future1 := testImpression(future.UnixMilli(), 7)
	old := testImpression(1_700_000_000_000, 1)
	badProbability := testImpression(1_700_000_000_000, 2)
	badProbability.Propensity = 1.5
	newer := testImpression(1_700_000_000_000, 3)
	newer.Schema = 9
	late := testClick(1_700_000_000_000, 1, future.UnixMilli())
	raw := map[string][]byte{
		"{broken": nil, "": nil, `{"type":"impression","id":"nonsense","product":"p","creative":"c"}`: nil,
		`{"type":"visit"}`: nil, "\x00\x00\x00\x00\x07\x00": nil, string(rawValue(t, badProbability)): nil, string(rawValue(t, newer)): nil,
		string(rawValue(t, future1)): nil, "{" + string(make([]byte, 20<<10)): nil, string(rawValue(t, old)): nil, string(rawValue(t, late)): nil,
	}
	var rs []*stream.Record
	for _, v := range slices.Sorted(maps.Keys(raw)) {
		rs = append(rs, &stream.Record{Topic: schemas.TopicRawImpressions, Partition: 0, Value: []byte(v)})
	}
	streamtest.Produce(t, b.Config, rs...)
	limit := time.Now().UnixMilli()
	streamtest.Produce(t, b.Config, watermarks(t, 1, limit)...)
	cfg := testConfig()
	cfg.Clock = ClockWall
	s, _ := newService(t, b, cfg)
	runUntil(t, b, s, 1, limit)
	reasons := map[string]int{}
	for _, r := range streamtest.Records(t, b.Config, schemas.TopicDeadLetters)[0] {
		var d eventpb.DeadLetter
		if err := proto.Unmarshal(r.Value, &d); err != nil {
			t.Fatal(err)
		}
		if _, ok := raw[string(d.Value)]; !ok || d.Topic != schemas.TopicRawImpressions || d.Detail == "" {
			t.Errorf("dead letter without its original: %v", &d)
		}
		reasons[d.Reason]++
	}
	want := map[string]int{"malformed": 2, "bad_id": 1, "unknown_schema": 3, "bad_field": 1, "bad_time": 1, "oversized": 1}
	if !maps.Equal(reasons, want) {
		t.Errorf("reasons %v, want %v", reasons, want)
	}
	clicks := 0
	for _, r := range streamtest.Records(t, b.Config, schemas.TopicClicks)[0] {
		if _, ok := punctuation(t, r); !ok {
			clicks++
			if at := r.Timestamp; at.After(time.Now().Add(cfg.AllowedSkew)) || at.Before(time.UnixMilli(limit)) {
				t.Errorf("click from the future at %v was not set back to now plus skew", at)
			}
		}
	}
	if clicks != 1 {
		t.Errorf("%d clicks, want 1", clicks)
	}
}
