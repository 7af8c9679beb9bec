package window

import (
	"fmt"
	"slices"
	"sort"
)

// Window joins one partition. It is not safe for concurrent use.
type Window struct {
	cfg       Config
	buckets   map[int64]*bucket
	order     []*bucket // ascending by number
	last      *bucket   // touched last: most events fall where the one before fell
	unsealed  []*bucket // in order of their making
	free      []*bucket // see keep
	freeBytes int
	names     *dictionary
	cut       Parts // of the impression at hand
	head      [recordHead]byte

	watermark int64
	floor     int64    // event time before which every bucket is gone, ms, or None; it never falls
	max       [2]int64 // by Input
	sources   [2]sources
	ledger    Ledger
	hash      uint64 // sum of the buckets' hashes
	replaying bool
	warm      byte // what Warm has read, so that it is read
	// replayedMS is how far a rebuild has read the impressions.
	replayedMS int64

	// Labels and Lates are what came out since ResetOutput, in order. The caller may read them, not keep them.
	Labels []Label
	Lates  []Late

	tx transaction
}

// New returns an empty window. The configuration must be valid.
func New(cfg Config) *Window {
	if err := cfg.Validate(); err != nil {
		panic("window: " + err.Error())
	}
	w := &Window{cfg: cfg, buckets: map[int64]*bucket{}, watermark: None, floor: None, max: [2]int64{None, None},
		names: newDictionary(cfg.Seed)}
	w.begin()
	return w
}

// Watermark is the event time up to which both inputs are complete, ms, or None.
func (w *Window) Watermark() int64 { return w.watermark }

// MaxTime is the largest event time seen on an input, ms, or None.
func (w *Window) MaxTime(in Input) int64 { return w.max[in] }

// Ledger accounts for everything that ever came in.
func (w *Window) Ledger() Ledger { return w.ledger }

// Known is how many impressions are in memory, labelled ones included.
func (w *Window) Known() int {
	n := 0
	for _, b := range w.order {
		n += b.imps()
	}
	return n
}

// closed says whether the window of a bucket's impressions is over.
func (w *Window) closed(number int64) bool {
	return w.watermark != None && (number+1)*w.cfg.BucketMS+w.cfg.WindowMS <= w.watermark
}

// gone says whether a bucket is forgotten.
func (w *Window) gone(number int64) bool {
	return w.floor != None && (number+1)*w.cfg.BucketMS <= w.floor
}

// horizon is the longest delay of a click that still says something of its impression, ms.
func (w *Window) horizon() int64 { return w.cfg.WindowMS + w.cfg.CorrectionMS }

// closeTime is the watermark at which a bucket closes.
func (w *Window) closeTime(b *bucket) int64 { return b.startMS + w.cfg.BucketMS + w.cfg.WindowMS }

// observeTime is the watermark at which a bucket has been watched for Config.ObserveMS.
func (w *Window) observeTime(b *bucket) int64 { return b.startMS + w.cfg.BucketMS + w.cfg.ObserveMS }

// firstOpen is the place of the first bucket that a watermark leaves open.
func (w *Window) firstOpen(watermark int64) int {
	return sort.Search(len(w.order), func(i int) bool { return w.closeTime(w.order[i]) > watermark })
}

// peek returns the bucket of a number, nil if there is none.
func (w *Window) peek(number int64) *bucket {
	// Buckets are mostly without gaps, so the first one tells where to look.
	if len(w.order) == 0 {
		return nil
	}
	if i := number - w.order[0].number; i >= 0 && i < int64(len(w.order)) {
		if b := w.order[i]; b.number == number {
			return b
		}
	}
	return w.buckets[number]
}

// at returns the bucket of a number, a new one if need be.
func (w *Window) at(number int64) *bucket {
	if w.last != nil && w.last.number == number {
		return w.last
	}
	b := w.peek(number)
	if b == nil {
		if n := len(w.free); n > 0 {
			b, w.free = w.free[n-1], w.free[:n-1]
			w.freeBytes -= b.memory()
		} else {
			b = &bucket{}
		}
		b.reset(number, number*w.cfg.BucketMS)
		w.buckets[number] = b
		i := sort.Search(len(w.order), func(i int) bool { return w.order[i].number >= number })
		w.order = slices.Insert(w.order, i, b)
		w.unsealed = append(w.unsealed, b)
		w.touch(b)
		b.mark.created = true
	}
	w.last = b
	return b
}

// find looks for an impression in a bucket. Only the disk under a spilled base can fail.
func (w *Window) find(b *bucket, h uint64, id recordID) (r ref, found bool, err error) {
	if off, ok, _ := b.findHot(h, id); ok {
		return ref{false, off}, true, nil
	}
	if b.base == nil {
		return ref{}, false, nil
	}
	off, ok, err := b.base.find(h, id, w.head[:])
	return ref{true, off}, ok, err
}

// Check holds the ledger's equations, and the ledger's view of the state against the state.
func (w *Window) Check() error {
	open, waiting := uint64(0), uint64(0)
	sum := uint64(0)
	for _, b := range w.order {
		sum += b.hash
	}
	for _, b := range w.order[w.firstOpen(w.watermark):] {
		open += uint64(b.open)
		waiting += uint64(b.waiting)
	}
	if sum != w.hash || len(w.order) != len(w.buckets) {
		return fmt.Errorf("window: hash %x and %d buckets in order, but the state has %x and %d", w.hash, len(w.order), sum, len(w.buckets))
	}
	if open != w.ledger.Open || waiting != w.ledger.Pending {
		return fmt.Errorf("%w: %d open and %d pending, but the state holds %d and %d", ErrLedger, w.ledger.Open, w.ledger.Pending, open, waiting)
	}
	return w.ledger.Check()
}
