package joiner

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/joiner/window"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// benchTraffic is n impressions at a rate a second of event time, with clicks on 5 %, as records of one partition
// in batches of `batch` impressions.
func benchTraffic(n, rate, batch int, start int64) (imps, clks [][]*stream.Record) {
	r := rand.New(rand.NewPCG(uint64(start), 2))
	at := map[int][]*stream.Record{} // clicks by the batch they come in
	for i := range n {
		t := start + int64(i)*1000/int64(rate)
		id := schemas.NewImpressionID(time.UnixMilli(t), random(r))
		if i%batch == 0 {
			imps = append(imps, nil)
			clks = append(clks, nil)
		}
		k := len(imps) - 1
		imps[k] = append(imps[k], &stream.Record{
			Topic: schemas.TopicImpressions, Key: id[:], Timestamp: id.Time(), Offset: int64(i),
			Value: marshal(
				&eventpb.Impression{
					Id:           id[:],
					RequestId:    id[8:],
					User:         r.Uint64(),
					Product:      "p-1234",
					Creative:     "c-123456",
					Placement:    "feed",
					Position:     3,
					Campaign:     "spring",
					Category:     "home/lamps",
					Experiment:   "e7",
					Variant:      "treatment",
					ModelVersion: "pm-12",
					Policy:       "s-33",
					Propensity:   0.125,
					Schema:       1,
				},
			),
		})
		if r.IntN(20) == 0 {
			delay := int64(r.ExpFloat64() * 5000)
			c := &stream.Record{
				Topic: schemas.TopicClicks, Key: id[:], Timestamp: time.UnixMilli(t + delay),
				Value: marshal(&eventpb.Click{ImpressionId: id[:], Id: []byte("click-0"), TimeMs: t + delay, Schema: 1}),
			}
			b := k + int(delay)*rate/1000/batch
			at[b] = append(at[b], c)
		}
	}
	offset := int64(0)
	for k := range clks {
		clks[k] = at[k]
		for _, c := range clks[k] {
			c.Offset = offset
			offset++
		}
	}
	return imps, clks
}

// BenchmarkShard is all that one goroutine does for a partition except talking to the broker: decode, join,
// close, encode the labels, audit, and the metadata of the commit.
func BenchmarkShard(b *testing.B) {
	const rate, batch, n = 100_000, 10_000, 1_000_000
	cfg := Default()
	cfg.Window, cfg.Lateness = time.Minute, 0
	s := NewShard(newGuard(cfg, zerolog.Nop()).suspicion(), 0, window.New(cfg.WindowConfig(7)), [2]int64{}, 0)
	var bytes, labels int64
	start, offsets := int64(1_790_000_000_000), [2]int64{}
	feed := func(imps, clks [][]*stream.Record) (events int) {
		for k := range imps {
			low := marshal(&eventpb.Punctuation{LowWatermarkMs: imps[k][0].Timestamp.UnixMilli()})
			p := &stream.Record{Topic: schemas.TopicClicks, Value: low, Headers: []stream.RecordHeader{{Key: schemas.HeaderPunctuation}}}
			for in, rs := range [2][]*stream.Record{imps[k], append(clks[k], p)} {
				for _, r := range rs {
					r.Offset = offsets[in]
					offsets[in]++
				}
				events += len(rs)
			}
			err := s.Process(
				[]stream.PartitionBatch{{Topic: schemas.TopicImpressions, Records: imps[k]}, {Topic: schemas.TopicClicks, Records: append(clks[k], p)}},
				new(allowance),
				func(r *stream.Record) {
					bytes += int64(len(r.Value))
					labels++
				},
			)
			if err != nil {
				b.Fatal(err)
			}
			if k%5 == 4 {
				if _, ok := s.Propose(cfg); !ok {
					b.Fatal("no progress")
				}
				s.Commit()
			}
		}
		return events
	}
	for range 7 {
		feed(benchTraffic(n, rate, batch, start))
		start += n * 1000 / rate
	}
	events, busy := 0, time.Duration(0)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		imps, clks := benchTraffic(n, rate, batch, start)
		start += n * 1000 / rate
		runtime.GC() // the traffic's garbage is not the shard's
		began := cpu(b)
		b.StartTimer()
		events += feed(imps, clks)
		busy += cpu(b) - began
	}
	b.ReportMetric(float64(events)/busy.Seconds(), "events/cpu-s") // on a busy machine the truer figure
	b.ReportMetric(float64(events)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(bytes)/float64(labels), "B/label")
	if err := s.w.Check(); err != nil {
		b.Fatal(err)
	}
}

// cpu is the processor time that this process has used.
func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkEndToEnd drains a backlog of 2 M impressions exactly once, with the broker in the same process.
func BenchmarkEndToEnd(b *testing.B) {
	const partitions, n = 4, 2_000_000
	events := 0
	for b.Loop() {
		b.StopTimer()
		broker := streamtest.Start(b, partitions)
		cfg := Default()
		cfg.Kafka, cfg.Window, cfg.Lateness = broker.Config, time.Minute, time.Second
		imps, clks := benchTraffic(n, 20_000, 50_000, 1_790_000_000_000)
		for k := range imps {
			streamtest.Produce(b, broker.Config, append(slices.Clone(imps[k]), clks[k]...)...)
			events += len(imps[k]) + len(clks[k])
		}
		tr := &truth{partitions: partitions}
		streamtest.Produce(b, broker.Config, tr.punctuation(1_790_000_000_000+1_000_000)...)
		b.StartTimer()
		i := start(b, cfg, nil)
		settle(b, cfg.Kafka, i)
		b.StopTimer()
		if l := i.Ledger(); !l.Balanced || l.Total.Open != 0 || l.Total.Positive+l.Total.FinalNegative != n {
			b.Fatalf("%+v", l.Total)
		}
		i.close(b)
		b.StartTimer()
	}
	b.ReportMetric(float64(events)/b.Elapsed().Seconds(), "events/s")
}

func BenchmarkAppendLabel(b *testing.B) {
	imps, _ := benchTraffic(1, 1, 1, 1_790_000_000_000)
	raw := imps[0][0].Value
	w := window.New(window.Config{WindowMS: 1000, BucketMS: 1000})
	id := schemas.ImpressionID(imps[0][0].Key)
	if err := errors.Join(w.Impression(raw, id, 0), w.Click(nil, id, 1_790_000_000_000, 0)); err != nil {
		b.Fatal(err)
	}
	l := w.Labels[0]
	b.Run("hand", func(b *testing.B) {
		var buf []byte
		for b.Loop() {
			buf = appendLabel(buf[:0], &l, false)
		}
	})
	b.Run("proto", func(b *testing.B) {
		var buf []byte
		for b.Loop() {
			m := &eventpb.Label{Impression: raw, Kind: l.Kind, WatermarkMs: l.WatermarkMS, Version: 1, Weight: 1}
			buf, _ = proto.MarshalOptions{}.MarshalAppend(buf[:0], m)
		}
	})
}
