package window

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"ctrloop/schemas"
)

// traffic is a stream of impressions at a steady event rate with clicks on some of them, drawn ahead so that a
// benchmark measures the join alone.
type traffic struct {
	imps []schemas.ImpressionID
	ends []int // of each impression in raw
	clks []struct {
		id schemas.ImpressionID
		at int64
	}
	raw   []byte // of all impressions
	bytes int    // of one: a full event
	click []byte
}

func draw(n int, perSecond int, ctr float64, start int64) *traffic {
	r := rand.New(rand.NewPCG(1, uint64(start)))
	tr := &traffic{click: make([]byte, 60)}
	for i := range n {
		t := start + int64(i)*1000/int64(perSecond)
		var random [10]byte
		for j := range random {
			random[j] = byte(r.Uint32())
		}
		id := schemas.NewImpressionID(time.UnixMilli(t), random)
		tr.imps = append(tr.imps, id)
		var err error
		before := len(tr.raw)
		if tr.raw, err = (proto.MarshalOptions{}).MarshalAppend(tr.raw, fullEvent(id, r.IntN(100_000))); err != nil {
			panic(err)
		}
		tr.ends = append(tr.ends, len(tr.raw))
		tr.bytes = len(tr.raw) - before
		if r.Float64() < ctr {
			tr.clks = append(tr.clks, struct {
				id schemas.ImpressionID
				at int64
			}{id, t + int64(r.ExpFloat64()*5000)})
		}
	}
	return tr
}

// feed gives the window everything, 1000 impressions and the clicks of the same time at once, and takes the
// labels like the service does.
func (tr *traffic) feed(b *testing.B, w *Window, labels *int) {
	c := 0
	at := 0
	for i, id := range tr.imps {
		raw := tr.raw[at:tr.ends[i]]
		at = tr.ends[i]
		if err := w.Impression(raw, id, int64(i)); err != nil {
			b.Fatal(err)
		}
		if i%1000 != 999 && i != len(tr.imps)-1 {
			continue
		}
		for ; c < len(tr.clks) && tr.clks[c].at <= id.UnixMilli(); c++ {
			if err := w.Click(tr.click, tr.clks[c].id, tr.clks[c].at, int64(c)); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Punctuate(Clicks, Promise{LowMS: id.UnixMilli()}); err != nil {
			b.Fatal(err)
		}
		if err := w.Advance(0); err != nil {
			b.Fatal(err)
		}
		if i%50_000 == 49_999 {
			*labels += len(w.Labels)
			w.Commit()
		}
	}
	*labels += len(w.Labels)
	w.Commit()
}

// BenchmarkLoop is insert, join and close at a 60 s window, 100 K impressions a second of event time, 5 % clicks.
func BenchmarkLoop(b *testing.B) {
	const rate = 100_000
	w := New(Config{WindowMS: 60_000, LatenessMS: 0, BucketMS: 1000, Seed: 7})
	labels, events, start := 0, 0, int64(1_790_000_000_000)
	draw(70*rate, rate, 0.05, start).feed(b, w, &labels) // 70 s: the window is full and memory is in its circle
	start += 70_000
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		b.StopTimer()
		tr := draw(5*rate, rate, 0.05, start)
		start += 5000
		events += len(tr.imps) + len(tr.clks)
		b.StartTimer()
		tr.feed(b, w, &labels)
	}
	b.ReportMetric(float64(events)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(w.Known()), "open")
	if err := w.Check(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkMemory is bytes per open impression, all in, and what a full garbage collection costs over them.
func BenchmarkMemory(b *testing.B) {
	const rate, seconds = 50_000, 60
	event := 0
	for b.Loop() {
		before := heap()
		w := New(Config{WindowMS: 3600_000, BucketMS: 1000})
		labels := 0
		for s := range seconds {
			tr := draw(rate, rate, 0.05, 1_790_000_000_000+int64(s)*1000)
			tr.feed(b, w, &labels)
			event = tr.bytes
		}
		bytes := heap() - before
		began := time.Now()
		runtime.GC()
		b.ReportMetric(float64(time.Since(began).Microseconds())/1000, "gc-ms")
		b.ReportMetric(float64(bytes)/float64(w.Known()), "B/open")
		b.ReportMetric(float64(event), "B/event")
		b.ReportMetric(float64(w.names.memory())/float64(w.Known()), "B/open-of-names")
		runtime.KeepAlive(w)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkRollback(b *testing.B) {
	w := New(Config{WindowMS: 60_000, BucketMS: 1000})
	labels := 0
	draw(1_000_000, 100_000, 0.05, 1_790_000_000_000).feed(b, w, &labels)
	tr := draw(10_000, 100_000, 0.05, 1_790_000_010_000)
	hash := w.Hash()
	for b.Loop() {
		for i, id := range tr.imps {
			if err := w.Impression(tr.raw[:tr.ends[0]], id, int64(i)); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Advance(0); err != nil {
			b.Fatal(err)
		}
		w.Rollback()
	}
	if w.Hash() != hash {
		b.Fatal(fmt.Errorf("hash %x, was %x", w.Hash(), hash))
	}
}
