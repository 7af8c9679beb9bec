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
	m := testMerger(ClockWall)
	for p := range int32(2) {
		m.assign(sourceAt(p), 0, 2, noon, 0, 0)
	}
	a, b := m.sources[sourceAt(0)], m.sources[sourceAt(1)]
	m.add(a, timed(0, 5, 6), 2, 2)
	if got := takeAll(m); got != nil {
		t.Fatalf("took %v although partition 1 has not been read", got)
	}
	m.add(b, timed(0, 1, 5), 2, 2) // read to its end
	if got := takeAll(m); !slices.Equal(got, []int64{1, 5, 5, 6}) {
		t.Fatalf("got %v", got)
	}
	m.ended(a, 3, noon)
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
	m.tick(noon.Add(time.Hour))
	if got := takeAll(m); got != nil {
		t.Fatalf("took %v although partition 0 has something that nobody has read", got)
	}
	m.add(a, nil, 9, 9) // the end of somebody's transaction
	m.ended(a, 9, noon.Add(time.Hour))
	m.ended(b, 4, noon.Add(time.Hour))
	if got := takeAll(m); !slices.Equal(got, []int64{9}) {
		t.Fatalf("got %v", got)
	}
}

// noon is when these tests begin.
var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func testMerger(c Clock) *merger {
	cfg := Default()
	cfg.Clock = c
	m := newMerger(cfg)
	m.tick(noon)
	return m
}

// TestUnheardPartitionHolds: a partition that was read to its end long ago, and of which no broker says since whether it
// still ends there, holds up the others for as long as that lasts: producers may reach it.
func TestUnheardPartitionHolds(t *testing.T) {
	m := testMerger(ClockWall)
	m.assign(sourceAt(0), 0, 0, noon, 0, 0)
	m.assign(sourceAt(1), 0, 0, noon, 0, 0)
	a, b := m.sources[sourceAt(0)], m.sources[sourceAt(1)]
	for s := range int64(40) {
		now := noon.Add(time.Duration(s) * time.Second)
		m.tick(now)
		m.add(b, timed(s, now.UnixMilli()), s+1, s+1)
		m.ended(b, s+1, now)
		if got := len(takeAll(m)); (got > 0) != (s <= 5) {
			t.Fatalf("second %d: %d taken", s, got)
		}
	}
	if low, last := m.promise(a), noon.Add(5*time.Second).UnixMilli(); low > last {
		t.Errorf("%d promised for a partition that is silent since %d", low, last)
	}
	late := noon.Add(7 * time.Second).UnixMilli()
	m.add(a, timed(0, late), 1, 1)
	m.ended(a, 1, noon.Add(40*time.Second))
	m.tick(noon.Add(40 * time.Second))
	got := takeAll(m)
	if len(got) != 35 || !slices.IsSorted(got) || !slices.Contains(got, late) {
		t.Errorf("%d came out: %v", len(got), got)
	}
}

// TestStopIsNoWaiting: a process that was stopped in the middle of a poll knows nothing of what was written meanwhile.
func TestStopIsNoWaiting(t *testing.T) {
	m := testMerger(ClockEvent)
	m.assign(sourceAt(0), 0, 1000, noon, 0, 0)
	m.assign(sourceAt(1), 0, 0, noon, 0, 0)
	m.tick(noon.Add(time.Hour))
	m.add(m.sources[sourceAt(1)], timed(0, 7_200_000), 1, 1)
	if got := takeAll(m); got != nil {
		t.Fatalf("took %v before anything of partition 0 was read", got)
	}
	m.add(m.sources[sourceAt(0)], timed(0, 1, 2), 1000, 1000)
	for p := range int32(2) {
		m.ended(m.sources[sourceAt(p)], 0, noon.Add(time.Hour))
	}
	if got := takeAll(m); !slices.Equal(got, []int64{1, 2, 7_200_000}) {
		t.Fatalf("got %v", got)
	}
}

// TestSuspendedMachine: the monotonic clock stands still while a machine sleeps, the one on the wall does not.
func TestSuspendedMachine(t *testing.T) {
	then := time.Now()
	woken := then.Add(time.Second)
	if got := age(woken, then); got != time.Second {
		t.Errorf("%v, want 1 s", got)
	}
	if got := age(woken.Round(0).Add(time.Hour), then); got != time.Hour+time.Second {
		t.Errorf("%v, want an hour more", got)
	}
}

// TestQuietFollowsTheWall: with clock wall and nothing left to read, time goes on with the wall clock, less the allowed skew.
func TestQuietFollowsTheWall(t *testing.T) {
	m := testMerger(ClockWall)
	m.assign(sourceAt(0), 0, 0, noon, 0, 0)
	m.assign(sourceAt(1), 0, 0, noon, 0, 0)
	a, b := m.sources[sourceAt(0)], m.sources[sourceAt(1)]
	hear := func(at time.Time) {
		m.ended(a, a.next, at)
		m.ended(b, b.next, at)
		m.tick(at.Add(time.Second))
	}
	hear(noon.Add(time.Minute))
	if low := m.low(); low != 0 {
		t.Fatalf("low watermark %d before the first event: a log of the past could not be read any more", low)
	}
	shown := noon.Add(time.Minute).UnixMilli()
	m.add(a, timed(0, shown), 1, 1)
	takeAll(m)
	hear(noon.Add(2 * time.Minute))
	if low, want := m.low(), noon.Add(2*time.Minute-10*time.Second).UnixMilli(); low != want {
		t.Errorf("low watermark %d, want %d", low, want)
	}
	m.ended(a, 2, noon.Add(3*time.Minute)) // something came and was not read yet
	m.ended(b, 0, noon.Add(3*time.Minute))
	m.tick(noon.Add(3 * time.Minute))
	if low, want := m.low(), noon.Add(2*time.Minute-10*time.Second).UnixMilli(); low != want {
		t.Errorf("low watermark %d with something to read, want %d still", low, want)
	}
}

func TestWatermarkCountsWhenAllPartitionsGaveIt(t *testing.T) {
	m := testMerger(ClockWall)
	mark := func(ms int64) []item { return []item{{event: event{kind: watermark, timeMS: ms}}} }
	for p := range int32(2) {
		m.assign(sourceAt(p), 0, 1, noon, 0, 0)
	}
	m.assign(sourceAt(2), 1, 1, noon, 100, 50) // its watermark was taken before a restart
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
		m := testMerger(ClockWall)
		k := rapid.IntRange(1, 5).Draw(t, "partitions")
		var input [][]item
		var want []int64
		for p := range k {
			times := rapid.SliceOfN(rapid.Int64Range(1, 1000), 0, 40).Draw(t, "times")
			slices.Sort(times)
			input = append(input, timed(0, times...))
			want = append(want, times...)
			m.assign(sourceAt(int32(p)), 0, int64(len(times)), noon, 0, 0)
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
	m := testMerger(ClockWall)
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
	m.assign(mine, 0, 1, noon, 0, 0)
	m.add(m.sources[mine], at(600_000), 1, 1)
	m.take()
	m.assign(taken, 7, 9, noon, 0, 60_000) // read up to minute 1 by whoever had it
	want("nothing read yet", 600_000, 60_000)
	m.add(m.sources[taken], at(61_000, 62_000), 9, 9)
	want("read", 600_000, 61_000)
	m.take()
	want("one taken", 600_000, 62_000)
	m.take()
	want("caught up", 600_000, 600_000)
}

// TestMergeIsASortByPromises: batches whose partitions become visible in any order, batches of which a killed sender wrote
// some partitions only until it sent the whole log again, and a promise behind every batch that was acknowledged: what
// had not been there before comes out in order.
func TestMergeIsASortByPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.IntRange(2, 4).Draw(t, "partitions")
		batches := rapid.IntRange(1, 4).Draw(t, "batches")
		m := testMerger(ClockEvent)
		written, read := make([][]item, k), make([]int, k)
		for p := range k {
			m.assign(sourceAt(int32(p)), 0, 0, noon, 0, 0)
		}
		write := func(p int, it item) {
			it.offset = int64(len(written[p]))
			written[p] = append(written[p], it)
		}
		var got []int64
		seen := map[int64]bool{}
		look := func(p int) { // what a poll may show at this moment
			s := m.sources[sourceAt(int32(p))]
			n := len(written[p])
			m.add(s, written[p][read[p]:n], int64(n), int64(n))
			read[p] = n
			for {
				_, it, ok := m.take()
				if !ok {
					return
				}
				if it.kind != watermark && !seen[it.timeMS] {
					seen[it.timeMS] = true
					got = append(got, it.timeMS)
				}
			}
		}
		promise := func(ms int64) {
			for p := range k {
				write(p, item{event: event{kind: watermark, timeMS: ms}})
			}
		}
		promise(1)
		for p := range k {
			look(p)
		}
		for sent, killed := 0, 0; sent < batches; {
			for _, p := range rapid.Permutation([]int{0, 1, 2, 3}[:k]).Draw(t, "order") {
				if killed < 3 && rapid.IntRange(0, 9).Draw(t, "kill") == 0 {
					killed++
					sent = -1 // the log again, from its start
					break
				}
				for i := range 5 {
					write(p, item{event: event{timeMS: int64(10 + sent*100 + i*k + p)}})
				}
				for q := range k {
					if rapid.Bool().Draw(t, "look") {
						look(q)
					}
				}
			}
			if sent++; sent > 0 {
				promise(int64(10 + sent*100))
			}
		}
		for range 2 {
			for p := range k {
				look(p)
			}
		}
		if len(got) != batches*k*5 || !slices.IsSorted(got) || m.buffered != 0 {
			t.Fatalf("%v came out, %d buffered", got, m.buffered)
		}
	})
}
