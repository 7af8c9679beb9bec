package ingest

import (
	"container/heap"
	"math"
	"time"

	"ctrloop/internal/stream"
)

// item is one record of a raw partition, checked.
type item struct {
	event
	problem *problem       // set: the record goes to dlq.v1
	record  *stream.Record // as read; only kept with a problem
	offset  int64
}

// source is one raw partition as the merger sees it.
type source struct {
	at       stream.TopicPartition
	items    []item // items[head:] wait
	head     int
	next     int64     // offset behind the last record read
	end      int64     // end of the partition, as last heard
	asked    time.Time // when the broker was asked for that end: all that came since may be unread
	lastMS   int64     // event time of the last item, given to items that have none
	promised int64     // the greatest watermark event taken, Unix ms; 0: none
	floor    int64     // place of the merge of whoever read this partition before, Unix ms
	position int64     // offset of the next record to take
	dirty    bool      // taken from since the last commit
	paused   bool
	index    int // in the heap, -1: not there
}

func (s *source) len() int { return len(s.items) - s.head }

// drained says whether the others need not wait for this source: it was read to its end, and that end is news. Whoever
// gives nothing and cannot be asked proves nothing by it, however long it lasts: the network may be broken, or this
// process may have been stopped.
func (m *merger) drained(s *source) bool {
	return s.len() == 0 && s.next >= s.end && age(m.now, s.asked) <= m.cfg.IdleAfter
}

// unproven counts the sources that hold up the others without having anything.
func (m *merger) unproven() (n int) {
	for s := range m.empty {
		if !m.drained(s) {
			n++
		}
	}
	return n
}

// age is how long ago a moment was. A machine that was suspended has lost time on its monotonic clock, not on the wall.
func age(now, then time.Time) time.Duration {
	return max(now.Sub(then), now.Round(0).Sub(then.Round(0)))
}

// merger takes the oldest item over all sources: a k-way merge of the heads of the partitions. It waits
// for a source that is empty while what it will give may be older than every other head (see limit). It is pure: the time
// comes in by tick.
type merger struct {
	cfg  Merge
	skew time.Duration // allowed skew, with clock wall; negative: time is no matter of the wall clock
	now  time.Time
	// promises says that watermark events, once there are any, are all that tells how far a source is: see limit.
	promises bool
	sources  map[stream.TopicPartition]*source
	ready    readyHeap        // sources with items, by the time of the first
	empty    map[*source]bool // the others
	// until caches limit while known is set; every change of the sources clears it.
	until int64
	known bool
	// position is the greatest event time taken, quiet how far the wall clock has come with nothing left to read, Unix ms.
	position, quiet int64
	buffered        int
}

// newMerger makes the merger for a clock.
func newMerger(cfg Config) *merger {
	m := &merger{
		cfg: cfg.Merge, skew: cfg.AllowedSkew, promises: cfg.Clock == ClockEvent,
		sources: map[stream.TopicPartition]*source{}, empty: map[*source]bool{},
	}
	if m.promises {
		m.skew = -1
	}
	return m
}

// tick says what time it is.
func (m *merger) tick(now time.Time) {
	m.now, m.known = now, false
	m.rest()
}

// rest moves the time on where nothing is left to read: with clock wall, what was written after the brokers were asked for
// the ends of all partitions happened then, but for the allowed skew (and for disorder, which is the join's business).
// It begins with the first event, so that a log of the past may be the first thing that ever comes.
func (m *merger) rest() {
	if m.skew < 0 || m.position == 0 && m.quiet == 0 || len(m.ready) > 0 || len(m.sources) == 0 {
		return
	}
	oldest := m.now
	for s := range m.empty {
		if !m.drained(s) {
			return
		}
		if s.asked.Before(oldest) {
			oldest = s.asked
		}
	}
	m.quiet = max(m.quiet, oldest.Add(-m.skew).UnixMilli())
}

// ended notes the end of a partition, as the broker saw it when it was asked or later.
func (m *merger) ended(s *source, end int64, asked time.Time) {
	m.known = false
	s.end = max(s.end, end)
	if asked.After(s.asked) {
		s.asked = asked
	}
}

// assign adds a partition that will be read from offset next and ended at end when the broker was asked.
func (m *merger) assign(at stream.TopicPartition, next, end int64, asked time.Time, promised, position int64) {
	s := &source{at: at, next: next, position: next, end: end, asked: asked, promised: promised, floor: position, index: -1}
	m.known = false
	m.sources[at] = s
	m.empty[s] = true
	m.position = max(m.position, position)
}

// drop forgets a partition and what is held of it.
func (m *merger) drop(at stream.TopicPartition) {
	s := m.sources[at]
	if s == nil {
		return
	}
	m.known = false
	m.buffered -= s.len()
	if s.index >= 0 {
		heap.Remove(&m.ready, s.index)
	}
	delete(m.empty, s)
	delete(m.sources, at)
}

// add appends what was read of a source.
func (m *merger) add(s *source, items []item, next, end int64) {
	m.known = false
	s.end, s.next = max(s.end, end), next
	if len(items) == 0 { // markers of transactions
		if s.len() == 0 {
			s.position = next
		}
		return
	}
	for i := range items {
		if items[i].problem != nil {
			items[i].timeMS = s.lastMS // it has no time of its own: it keeps its place
		}
		s.lastMS = items[i].timeMS
	}
	m.buffered += len(items)
	if s.head > 0 { // make room at the front
		s.items = append(s.items[:0], s.items[s.head:]...)
		s.head = 0
	}
	s.items = append(s.items, items...)
	if s.index < 0 {
		delete(m.empty, s)
		heap.Push(&m.ready, s)
	}
}

// limit is the event time up to which nothing that empty sources will give can be older than what is there.
//
// A source that has been read to an end that is news has nothing to give, by the wall clock: what it gets from now on
// is new, within the disorder that the join allows. In a replay it is not so: the partitions of one batch, which may be
// hours of event time, become visible one after the other, and what a killed sender had written of a batch waits for
// the rest of it until somebody sends it again. There, a source is as far as it has promised, however long that takes.
func (m *merger) limit() int64 {
	if m.known {
		return m.until
	}
	m.until, m.known = math.MaxInt64, true
	promising := false
	if m.promises {
		for _, s := range m.sources {
			promising = promising || s.promised > 0
		}
	}
	for s := range m.empty {
		switch {
		case promising:
			m.until = min(m.until, s.promised)
		case !m.drained(s):
			m.until = -1
		}
	}
	return m.until
}

// blocked says whether the oldest item has to wait for an empty source.
func (m *merger) blocked() bool {
	return len(m.ready) > 0 && m.ready[0].items[m.ready[0].head].timeMS > m.limit()
}

// take takes the oldest item, or returns false when there is none or a source has to be waited for.
func (m *merger) take() (*source, *item, bool) {
	if len(m.ready) == 0 || m.blocked() {
		return nil, nil, false
	}
	s := m.ready[0]
	it := &s.items[s.head]
	s.head++
	s.position, s.dirty = it.offset+1, true
	m.buffered--
	if s.head == len(s.items) {
		heap.Pop(&m.ready)
		// The item handed out stays valid: the array is only written by the next add.
		s.head, s.items = 0, s.items[:0]
		s.position = s.next
		m.empty[s] = true
		m.known = false
	} else {
		heap.Fix(&m.ready, 0)
	}
	switch {
	case it.problem != nil:
	case it.kind == watermark:
		s.promised = max(s.promised, it.timeMS)
		m.known = false
	default:
		m.position = max(m.position, it.timeMS)
	}
	return s, it, true
}

// low is the low watermark: no older event will be routed, but for disorder within the sources.
func (m *merger) low() int64 {
	promised := int64(-1)
	for _, s := range m.sources {
		if promised < 0 || s.promised < promised {
			promised = s.promised
		}
	}
	return max(m.position, promised, m.quiet)
}

// promise is the low watermark of one source alone: that of the merge, but for a source that this instance has just
// taken over and that lags behind the others.
func (m *merger) promise(s *source) int64 {
	switch {
	case s.len() > 0:
		return min(m.low(), s.items[s.head].timeMS)
	case !m.drained(s):
		return min(m.low(), max(s.floor, s.lastMS))
	}
	return m.low()
}

// readyHeap orders sources by the time of their first item; ties by name, so that a merge of the same
// input gives the same output.
type readyHeap []*source

func (h readyHeap) Len() int { return len(h) }
func (h readyHeap) Less(i, j int) bool {
	a, b := h[i], h[j]
	ta, tb := a.items[a.head].timeMS, b.items[b.head].timeMS
	if ta != tb {
		return ta < tb
	}
	if a.at.Topic != b.at.Topic {
		return a.at.Topic > b.at.Topic // impressions before clicks
	}
	return a.at.Partition < b.at.Partition
}
func (h readyHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *readyHeap) Push(x any) {
	s := x.(*source)
	s.index = len(*h)
	*h = append(*h, s)
}
func (h *readyHeap) Pop() any {
	old := *h
	s := old[len(old)-1]
	s.index = -1
	*h = old[:len(old)-1]
	return s
}
