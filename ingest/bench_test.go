package ingest

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"ctrloop/internal/broker/brokertest"
	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

func BenchmarkDecode(b *testing.B) {
	d := decoder{maxBytes: 16 << 10}
	proto := rawValue(b, testImpression(1_700_000_000_000, 1))
	older := testImpression(1_700_000_000_000, 1)
	older.Schema = 0 // has to be rewritten
	rewritten := rawValue(b, older)
	click := rawValue(b, testClick(1_700_000_000_000, 1, 1_700_000_000_005))
	json := []byte(
		`{"type":"impression","id":"018bcfe5-6800-7000-8000-000000000001","product":"p","creative":"c-1","user":"alice","placement":"feed",` +
			`"position":1,"propensity":0.25}`,
	)
	for name, value := range map[string][]byte{"proto": proto, "rewritten": rewritten, "click": click, "json": json} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, p := d.raw(schemas.TopicRawImpressions, value); p != nil {
					b.Fatal(p)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkMerge is the merge alone: 16 partitions, decoded already.
func BenchmarkMerge(b *testing.B) {
	const sources, chunk = 16, 1000
	m := testMerger(ClockWall)
	var at []*source
	for p := range int32(sources) {
		tp := stream.TopicPartition{Topic: schemas.TopicRawImpressions, Partition: p}
		m.assign(tp, 0, 1<<40, noon, 0, 0)
		at = append(at, m.sources[tp])
	}
	items := make([]item, chunk)
	next := int64(0)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, ok := m.take(); ok {
			continue
		}
		for _, s := range at {
			if s.len() > 0 {
				continue
			}
			for i := range items {
				items[i] = item{event: event{timeMS: s.next + int64(i)}, offset: s.next + int64(i)}
			}
			next += chunk
			m.add(s, items, s.next+chunk, 1<<40)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkService is end to end: a million raw events in an embedded broker, to the
// last punctuation. Run with -benchtime 1x.
func BenchmarkService(b *testing.B) {
	const n, partitions = 1_000_000, 8
	for b.Loop() {
		b.StopTimer()
		e := brokertest.Start(b, b.TempDir())
		if err := stream.EnsureTopics(b.Context(), e.Config(), schemas.Topics(), partitions, -1); err != nil {
			b.Fatal(err)
		}
		const start = 1_700_000_000_000
		for from := 0; from < n; from += 50_000 {
			rs := make([]*stream.Record, 50_000)
			for i := range rs {
				ms := int64(start + (from+i)*10)
				im := testImpression(ms, uint64(from+i))
				rs[i] = &stream.Record{Topic: schemas.TopicRawImpressions, Key: im.Id, Value: rawValue(b, im)}
			}
			streamtest.Produce(b, e.Config(), rs...)
		}
		last := int64(start + n*10)
		streamtest.Produce(b, e.Config(), watermarks(b, partitions, last)...)
		s, err := New(Default(), e.Config(), zerolog.Nop(), prometheus.NewRegistry())
		if err != nil {
			b.Fatal(err)
		}
		s.cfg.Clock = ClockEvent
		ctx, cancel := context.WithTimeout(b.Context(), 2*time.Minute)
		b.StartTimer()
		started, cpu := time.Now(), cpuSeconds(b)
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		for {
			end, err := stream.CommittedOffsets(ctx, e.Config(), Group)
			if err != nil {
				b.Fatal(err)
			}
			total := int64(0)
			for _, c := range end {
				total += c.Offset
			}
			if total >= n+2*partitions {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		b.ReportMetric(n/time.Since(started).Seconds(), "events/s")
		b.ReportMetric(n/(cpuSeconds(b)-cpu), "events/cpu-s") // broker included; what a busy machine does not blur
		cancel()
		<-done
		e.Stop()
	}
}

func cpuSeconds(b *testing.B) float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
