package ingest

import (
	"container/heap"
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
	next     int64         // offset behind the last record read
	end      int64         // end of the partition, as last heard
	waited   time.Duration // spent waiting for it since it last gave something
	lastMS   int64         // event time of the last item, given to items that have none
	promised int64         // the greatest watermark event taken, Unix ms; 0: none
	floor    int64         // place of the merge of whoever read this partition before, Unix ms
	position int64         // offset of the next record to take
	dirty    bool          // taken from since the last commit
	paused   bool
	index    int // in the heap, -1: not there
}

func (s *source) len() int { return len(s.items) - s.head }

// drained says whether the others need not wait for this source.
func (s *source) drained(idleAfter time.Duration) bool {
	return s.next >= s.end || s.waited > idleAfter
}

// merger takes the oldest item over all sources: a k-way merge of the heads of the partitions. It waits
// for a source that is empty but not drained, because what it will give may be older than every other
// head. It is pure: the time that was spent waiting comes in as an argument.
type merger struct {
	idleAfter time.Duration
	sources   map[stream.TopicPartition]*source
	ready     readyHeap        // sources with items, by the time of the first
	empty     map[*source]bool // the others
	// open caches that no empty source has to be waited for; every change of the sources clears it.
	open bool
	// position is the greatest event time taken, Unix ms.
	position int64
	buffered int
}

func newMerger(idleAfter time.Duration) *merger {
	return &merger{idleAfter: idleAfter, sources: map[stream.TopicPartition]*source{}, empty: map[*source]bool{}}
}

// assign adds a partition that will be read from offset next and presently ends at end.
func (m *merger) assign(at stream.TopicPartition, next, end, promised, position int64) {
	s := &source{at: at, next: next, position: next, end: end, promised: promised, floor: position, index: -1}
	m.open = false
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
	m.open = false
	m.buffered -= s.len()
	if s.index >= 0 {
		heap.Remove(&m.ready, s.index)
	}
	delete(m.empty, s)
	delete(m.sources, at)
}

// add appends what was read of a source.
func (m *merger) add(s *source, items []item, next, end int64) {
	m.open = false
	s.waited, s.end, s.next = 0, end, next
	if len(items) == 0 {
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

// waiting tells the merger that d was spent waiting for sources.
func (m *merger) waiting(d time.Duration) {
	for s := range m.empty {
		s.waited += d
	}
	m.open = false
}

// blocked says whether an empty source has to be waited for.
func (m *merger) blocked() bool {
	if m.open {
		return false
	}
	for s := range m.empty {
		if !s.drained(m.idleAfter) {
			return true
		}
	}
	m.open = true
	return false
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
		m.open = false
	} else {
		heap.Fix(&m.ready, 0)
	}
	switch {
	case it.problem != nil:
	case it.kind == watermark:
		s.promised = max(s.promised, it.timeMS)
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
	return max(m.position, promised)
}

// promise is the low watermark of one source alone: that of the merge, but for a source that this instance has just
// taken over and that lags behind the others.
func (m *merger) promise(s *source) int64 {
	switch {
	case s.len() > 0:
		return min(m.low(), s.items[s.head].timeMS)
	case !s.drained(m.idleAfter):
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
