package ingest

import (
	"cmp"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ctrloop/internal/stream"
	"ctrloop/schemas"
)

func sourceAt(p int32) stream.TopicPartition {
	return stream.TopicPartition{Topic: schemas.TopicRawImpressions, Partition: p}
}

func timed(from int64, times ...int64) []item {
	items := make([]item, len(times))
	for i, ms := range times {
		items[i] = item{event: event{timeMS: ms}, offset: from + int64(i)}
	}
	return items
}

func takeAll(m *merger) []int64 {
	var got []int64
	for {
		_, it, ok := m.take()
		if !ok {
			return got
		}
		got = append(got, it.timeMS)
	}
}

func TestMergeWaitsForWhatIsNotDrained(t *testing.T) {
	m := newMerger(time.Second)
	for p := range int32(2) {
		m.assign(sourceAt(p), 0, 10, 0, 0)
	}
	a, b := m.sources[sourceAt(0)], m.sources[sourceAt(1)]
	m.add(a, timed(0, 5, 6), 2, 10)
	if got := takeAll(m); got != nil {
		t.Fatalf("took %v although partition 1 has not been read", got)
	}
	m.add(b, timed(0, 1, 5), 2, 2) // read to its end
	if got := takeAll(m); !slices.Equal(got, []int64{1, 5, 5, 6}) {
		t.Fatalf("got %v", got)
	}
	m.add(b, timed(2, 4), 3, 3) // late, from a partition that had been drained
	if got := takeAll(m); got != nil {
		t.Fatalf("took %v although partition 0 has more to give", got)
	}
	m.add(a, timed(2, 8), 3, 3)
	if got := takeAll(m); !slices.Equal(got, []int64{4, 8}) {
		t.Fatalf("got %v", got)
	}
	if m.low() != 8 {
		t.Fatalf("low watermark %d, want 8: it never falls", m.low())
	}
	a.end = 9 // it has more, as another partition's answer showed
	m.add(b, timed(3, 9), 4, 4)
	m.waiting(500 * time.Millisecond)
	if got := takeAll(m); got != nil {
		t.Fatalf("took %v before the wait was over", got)
	}
	m.waiting(501 * time.Millisecond) // a gives nothing: an end marker, perhaps
	if got := takeAll(m); !slices.Equal(got, []int64{9}) {
		t.Fatalf("got %v", got)
	}
}

func TestWatermarkCountsWhenAllPartitionsGaveIt(t *testing.T) {
	m := newMerger(time.Second)
	mark := func(ms int64) []item { return []item{{event: event{kind: watermark, timeMS: ms}}} }
	for p := range int32(2) {
		m.assign(sourceAt(p), 0, 1, 0, 0)
	}
	m.assign(sourceAt(2), 1, 1, 100, 50) // its watermark was taken before a restart
	m.add(m.sources[sourceAt(0)], mark(100), 1, 1)
	m.sources[sourceAt(1)].end = 0
	takeAll(m)
	if m.low() != 50 {
		t.Fatalf("low watermark %d, want 50: partition 1 has promised nothing", m.low())
	}
	m.add(m.sources[sourceAt(1)], mark(100), 1, 1)
	takeAll(m)
	if m.low() != 100 {
		t.Fatalf("low watermark %d, want 100", m.low())
	}
	m.drop(sourceAt(0))
	m.drop(sourceAt(1))
	m.drop(sourceAt(2))
	if len(m.ready) != 0 || len(m.empty) != 0 || m.buffered != 0 {
		t.Fatal("something is left of dropped partitions")
	}
}

// Whatever the sizes and the order of reads: the output is the sorted input, offsets of a partition come in
// order, and the position of a partition is always behind what was taken of it.
func TestMergeIsASort(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMerger(time.Second)
		k := rapid.IntRange(1, 5).Draw(t, "partitions")
		var input [][]item
		var want []int64
		for p := range k {
			times := rapid.SliceOfN(rapid.Int64Range(1, 1000), 0, 40).Draw(t, "times")
			slices.Sort(times)
			input = append(input, timed(0, times...))
			want = append(want, times...)
			m.assign(sourceAt(int32(p)), 0, int64(len(times)), 0, 0)
		}
		slices.Sort(want)
		var got []int64
		taken := map[stream.TopicPartition]int64{}
		drain := func() {
			for {
				s, it, ok := m.take()
				if !ok {
					return
				}
				if it.offset != taken[s.at] || s.position != it.offset+1 {
					t.Fatalf("%v: offset %d, position %d, want %d", s.at, it.offset, s.position, taken[s.at])
				}
				taken[s.at]++
				got = append(got, it.timeMS)
			}
		}
		read := make([]int, k)
		for {
			var open []int
			for p := range k {
				if read[p] < len(input[p]) {
					open = append(open, p)
				}
			}
			if len(open) == 0 {
				break
			}
			p := rapid.SampledFrom(open).Draw(t, "partition")
			n := rapid.IntRange(1, len(input[p])-read[p]).Draw(t, "n")
			m.add(m.sources[sourceAt(int32(p))], input[p][read[p]:read[p]+n], int64(read[p]+n), int64(len(input[p])))
			read[p] += n
			drain()
		}
		drain()
		if slices.CompareFunc(want, got, cmp.Compare[int64]) != 0 || m.buffered != 0 {
			t.Fatalf("got %v, want %v, %d buffered", got, want, m.buffered)
		}
	})
}

// TestPromiseOfALaggard: an instance that takes over a partition minutes behind its own promises for it only what is
// true of it, until it has caught up.
func TestPromiseOfALaggard(t *testing.T) {
	m := newMerger(time.Second)
	mine, taken := stream.TopicPartition{Topic: schemas.TopicRawClicks}, stream.TopicPartition{Topic: schemas.TopicRawClicks, Partition: 1}
	at := func(ms ...int64) (items []item) {
		for i, t := range ms {
			items = append(items, item{event: event{kind: click, timeMS: t}, offset: int64(i)})
		}
		return items
	}
	want := func(when string, a, b int64) {
		t.Helper()
		if x, y := m.promise(m.sources[mine]), m.promise(m.sources[taken]); x != a || y != b {
			t.Errorf("%s: promises %d and %d, want %d and %d", when, x, y, a, b)
		}
	}
	m.assign(mine, 0, 1, 0, 0)
	m.add(m.sources[mine], at(600_000), 1, 1)
	m.take()
	m.assign(taken, 7, 9, 0, 60_000) // read up to minute 1 by whoever had it
	want("nothing read yet", 600_000, 60_000)
	m.add(m.sources[taken], at(61_000, 62_000), 9, 9)
	want("read", 600_000, 61_000)
	m.take()
	want("one taken", 600_000, 62_000)
	m.take()
	want("caught up", 600_000, 600_000)
}
