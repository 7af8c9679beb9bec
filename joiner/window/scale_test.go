package window

import (
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// open20M is the scale of the targets in the design; CTRLOOP_BENCH_OPEN sets another.
const open20M = 20_000_000

func scale(b *testing.B) int {
	n, err := strconv.Atoi(os.Getenv("CTRLOOP_BENCH_OPEN"))
	if err != nil {
		return open20M
	}
	b.Logf("%d open instead of %d", n, open20M)
	return n
}

// fillWindow opens n impressions over two hours of event time in one partition, 5 % of them clicked, and calls settled
// after each second.
func fillWindow(b *testing.B, w *Window, n int, settled func()) {
	const seconds = 7200
	labels := 0
	for s := range seconds {
		draw(n/seconds, n/seconds, 0.05, 1_790_000_000_000+int64(s)*1000).feed(b, w, &labels)
		if settled != nil {
			settled()
		}
	}
	if got := w.Known(); got < n*99/100 {
		b.Fatalf("%d open, want %d", got, n)
	}
}

// BenchmarkOpen20M is a two hour window with 20 M open impressions in memory: bytes each, a full garbage collection, and
// the longest pause of all collections on the way. It takes about 1.5 GB and a minute.
func BenchmarkOpen20M(b *testing.B) {
	n := scale(b)
	for b.Loop() {
		before := heap()
		w := New(Config{WindowMS: 3 * 3600_000, BucketMS: 1000, LatenessMS: 2000, Seed: 5})
		fillWindow(b, w, n, nil)
		bytes := heap() - before
		var took time.Duration
		for range 5 {
			began := time.Now()
			runtime.GC()
			took = max(took, time.Since(began))
		}
		b.ReportMetric(float64(bytes)/float64(w.Known()), "B/open")
		b.ReportMetric(float64(w.Memory())/float64(w.Known()), "B/open-accounted")
		b.ReportMetric(float64(took.Microseconds())/1000, "gc-ms")
		b.ReportMetric(float64(longestPause().Microseconds())/1000, "longest-pause-ms")
		runtime.KeepAlive(w)
	}
}

// longestPause of the collections that the runtime remembers, the last 256.
func longestPause() time.Duration {
	var s debug.GCStats
	debug.ReadGCStats(&s)
	if len(s.Pause) == 0 {
		return 0
	}
	return slices.Max(s.Pause)
}

// BenchmarkSpilled20M is the same under a limit of 1 GiB for the state, with the records on disk: what is resident at
// most, what a click costs there, and the close of a bucket.
func BenchmarkSpilled20M(b *testing.B) {
	n := scale(b)
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(3 << 29))
	limit := int(float64(1<<30) * float64(n) / open20M)
	for b.Loop() {
		f, err := os.CreateTemp(b.TempDir(), "spill")
		if err != nil {
			b.Fatal(err)
		}
		w := New(Config{WindowMS: 3 * 3600_000, BucketMS: 1000, LatenessMS: 2000, Seed: 5})
		var at int64
		var buf []byte
		fillWindow(b, w, n, func() {
			numbers := w.Unsaved(nil)
			if len(numbers) < 8 {
				return
			}
			for _, k := range numbers {
				buf = w.AppendBase(buf[:0], k)
				if _, err := f.WriteAt(buf, at); err != nil {
					b.Fatal(err)
				}
				w.Saved(k, f, at)
				at += int64(len(buf))
			}
			w.Spill(limit)
		})
		buckets, bytes := w.Spilled()
		b.ReportMetric(float64(w.Memory())/(1<<20), "state-MiB")
		b.ReportMetric(float64(resident(b))/(1<<20), "peak-resident-MiB")
		b.ReportMetric(float64(bytes)/(1<<20), "on-disk-MiB")
		clickSpilled(b, w, buckets)
		f.Close()
	}
}

// clickSpilled joins clicks with impressions of the oldest, spilled bucket, then closes it.
func clickSpilled(b *testing.B, w *Window, buckets int) {
	if buckets == 0 {
		b.Fatal("nothing is spilled")
	}
	first := w.order[0]
	data, err := first.base.load()
	if err != nil {
		b.Fatal(err)
	}
	clicks := 0
	began := time.Now()
	for off := 0; off < len(data); off += recordSize(data[off:]) {
		if err := w.Click(nil, idAt(data[off:]).of(first.startMS), first.startMS+1000, int64(1<<40+off)); err != nil {
			b.Fatal(err)
		}
		clicks++
	}
	b.ReportMetric(float64(time.Since(began).Nanoseconds())/float64(clicks), "ns/spilled-click")
	w.Rollback()
	began = time.Now()
	if err := w.close(first); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(time.Since(began).Nanoseconds())/float64(clicks), "ns/spilled-close")
}

// resident is the most memory that this process has had, bytes.
func resident(b *testing.B) int64 {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Skip("no /proc")
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kb << 10
		}
	}
	return 0
}

// BenchmarkLoad20M is a restart from an image and its files, page cache warm.
func BenchmarkLoad20M(b *testing.B) {
	n := scale(b)
	w := New(Config{WindowMS: 3 * 3600_000, BucketMS: 1000, LatenessMS: 2000, Seed: 5})
	f, err := os.CreateTemp(b.TempDir(), "segments")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	places := map[int64]int64{}
	var at int64
	var buf []byte
	fillWindow(b, w, n, func() {
		for _, k := range w.Unsaved(nil) {
			buf = w.AppendBase(buf[:0], k)
			if _, err := f.WriteAt(buf, at); err != nil {
				b.Fatal(err)
			}
			places[k] = at
			w.Saved(k, f, at)
			at += int64(len(buf))
		}
	})
	snap, image := w.Snapshot([2]int64{1, 1}), w.AppendImage(nil)
	cfg := w.cfg
	w = nil
	runtime.GC()
	for b.Loop() {
		l, err := Load(cfg, snap, image, func(number int64, _ int) (io.ReaderAt, int64, error) {
			return f, places[number], nil
		}, true)
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Restored(snap); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(image))/(1<<20), "image-MiB")
}
