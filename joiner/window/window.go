package window

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"

	"ctrloop/internal/invariant"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// None is a time or watermark that is not known yet; it is smaller than every time.
const None = math.MinInt64

// maxArena bounds the encoded events of one bucket: positions in it are 32 bits.
const maxArena = math.MaxUint32

// maxFree bounds the dropped buckets whose memory is kept for new ones. In steady state one bucket closes
// when one opens; a few cover batches that cross several seconds.
const maxFree = 8

// Config says how the join is done. Changing Window or Bucket over existing state is refused by the service.
type Config struct {
	WindowMS   int64  // a click counts until this long after its impression, ms
	LatenessMS int64  // allowed disorder: the watermark stays this far behind, ms
	BucketMS   int64  // width of a time bucket, ms; a final negative comes at most this much late
	Seed       uint64 // of the hash tables, so that ids cannot be crafted to collide; no effect on results
}

// Validate returns every problem.
func (c Config) Validate() error {
	var errs []error
	if c.WindowMS <= 0 {
		errs = append(errs, fmt.Errorf("window of %d ms: want more than 0", c.WindowMS))
	}
	if c.LatenessMS < 0 {
		errs = append(errs, fmt.Errorf("lateness of %d ms: want 0 or more", c.LatenessMS))
	}
	if c.BucketMS <= 0 {
		errs = append(errs, fmt.Errorf("bucket of %d ms: want more than 0", c.BucketMS))
	}
	return errors.Join(errs...)
}

// Input is one of the two sides of the join.
type Input uint8

// The two inputs.
const (
	Impressions Input = iota
	Clicks
)

// String is the input's name.
func (i Input) String() string {
	if i == Clicks {
		return "clicks"
	}
	return "impressions"
}

// Label is a verdict on one impression.
type Label struct {
	ID          schemas.ImpressionID
	Raw         []byte // the impression as received; valid until Commit or Rollback
	Kind        eventpb.LabelKind
	Clicked     bool
	DelayMS     int64 // click time - impression time, at least 0; 0 without a click
	Clicks      uint32
	WatermarkMS int64 // None as long as one input is unheard of
	Version     uint32
}

// Late is an event that made no label of its own.
type Late struct {
	Reason      schemas.LateReason
	ID          schemas.ImpressionID
	TimeMS      int64
	WatermarkMS int64
	Input       Input
	Offset      int64
	Value       []byte // as received; valid until Commit or Rollback
}

// Window joins one partition. It is not safe for concurrent use.
type Window struct {
	cfg     Config
	buckets map[int64]*bucket
	order   []*bucket // ascending by number
	last    *bucket   // touched last: most events fall where the one before fell
	free    []*bucket

	watermark int64
	max       [2]int64 // by Input
	ledger    Ledger
	hash      uint64 // sum of the buckets' hashes
	replaying bool

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
	w := &Window{cfg: cfg, buckets: map[int64]*bucket{}, watermark: None, max: [2]int64{None, None}}
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
		n += len(b.imps)
	}
	return n
}

// ResetOutput forgets Labels and Lates.
func (w *Window) ResetOutput() { w.Labels, w.Lates = w.Labels[:0], w.Lates[:0] }

// closed says whether the bucket of an event time is gone.
func (w *Window) closed(number int64) bool {
	return w.watermark != None && (number+1)*w.cfg.BucketMS+w.cfg.WindowMS <= w.watermark
}

func (w *Window) hashID(hi, lo uint64) uint64 {
	return mix(hi ^ w.cfg.Seed ^ mix(lo+0x9e3779b97f4a7c15))
}

// Impression takes an impression as received. Its event time is in its id. raw is copied.
func (w *Window) Impression(raw []byte, id schemas.ImpressionID, offset int64) error {
	t := id.UnixMilli()
	w.saw(Impressions, t)
	if !w.replaying {
		w.ledger.ImpressionsIn++
	}
	number := t / w.cfg.BucketMS
	if w.closed(number) {
		if !w.replaying {
			w.ledger.LateImpressions++
			w.late(schemas.LateImpression, id, t, Impressions, offset, slices.Clone(raw))
		}
		return nil
	}
	hi, lo := id.Hi(), id.Lo()
	h := w.hashID(hi, lo)
	b := w.at(number)
	if b.find(h, hi, lo) >= 0 {
		if !w.replaying {
			w.ledger.Duplicate++
		}
		return nil
	}
	if len(b.arena)+len(raw) > maxArena || len(b.imps) >= math.MaxUint32-1 {
		return fmt.Errorf("window: bucket at %d ms is full (%d impressions): use more partitions or a smaller bucket", number*w.cfg.BucketMS, len(b.imps))
	}
	w.touch(b)
	w.insert(b, raw, h, hi, lo, offset)
	if b.waiting > 0 {
		w.settle(b, h, len(b.imps)-1, t)
	}
	return nil
}

func (w *Window) insert(b *bucket, raw []byte, h, hi, lo uint64, offset int64) {
	if b.firstImp < 0 {
		b.firstImp = offset
	}
	if b.byImp.full() {
		b.byImp.resize(len(b.imps) + 1)
		for i := range b.imps {
			b.byImp.put(w.hashID(b.imps[i].hi, b.imps[i].lo), i)
		}
	}
	b.byImp.put(h, len(b.imps))
	b.imps = append(b.imps, impression{hi: hi, lo: lo, off: uint32(len(b.arena)), size: uint32(len(raw))})
	b.arena = append(b.arena, raw...)
	w.rehash(b, mix(hi^mix(lo^mix(uint64(offset)))))
	b.open++
	w.ledger.Open++
}

// Click takes a click as received; timeMS is when it happened. raw is copied.
func (w *Window) Click(raw []byte, id schemas.ImpressionID, timeMS, offset int64) error {
	w.saw(Clicks, timeMS)
	if !w.replaying {
		w.ledger.ClicksIn++
	}
	t := id.UnixMilli()
	number := t / w.cfg.BucketMS
	if w.closed(number) {
		if !w.replaying {
			w.ledger.LateClicks++
			w.late(schemas.LateClickAfterClose, id, timeMS, Clicks, offset, slices.Clone(raw))
		}
		return nil
	}
	hi, lo := id.Hi(), id.Lo()
	h := w.hashID(hi, lo)
	b := w.at(number)
	if len(b.clkMem)+len(raw) > maxArena || len(b.clicks) >= math.MaxUint32-1 {
		return fmt.Errorf("window: bucket at %d ms is full (%d waiting clicks): use more partitions or a smaller bucket", number*w.cfg.BucketMS, len(b.clicks))
	}
	w.touch(b)
	if b.firstC < 0 {
		b.firstC = offset
	}
	if i := b.find(h, hi, lo); i >= 0 {
		w.join(b, i, t, timeMS, offset, raw, true)
		return nil
	}
	w.wait(b, raw, h, hi, lo, timeMS, offset)
	return nil
}

// wait puts a click aside until its impression comes or the bucket closes.
func (w *Window) wait(b *bucket, raw []byte, h, hi, lo uint64, timeMS, offset int64) {
	i := len(b.clicks)
	head := b.findClick(h, hi, lo)
	if head < 0 {
		if b.byClick.full() {
			b.byClick.resize(b.byClick.n + 1)
			for j := range b.clicks {
				if c := &b.clicks[j]; c.tail != 0 {
					b.byClick.put(w.hashID(c.hi, c.lo), j)
				}
			}
		}
		b.byClick.put(h, i)
	}
	b.clicks = append(b.clicks, pendingClick{hi: hi, lo: lo, timeMS: timeMS, offset: offset, off: uint32(len(b.clkMem)), size: uint32(len(raw))})
	b.clkMem = append(b.clkMem, raw...)
	if head < 0 {
		b.clicks[i].tail = uint32(i + 1)
	} else {
		c := &b.clicks[head]
		w.saveClick(b, head)
		w.saveClick(b, int(c.tail-1))
		b.clicks[c.tail-1].next = uint32(i + 1)
		c.tail = uint32(i + 1)
	}
	w.rehash(b, hashPending(&b.clicks[i]))
	b.waiting++
	w.ledger.Pending++
}

func hashPending(c *pendingClick) uint64 {
	return mix(c.hi ^ mix(c.lo^mix(uint64(c.timeMS)^mix(uint64(c.offset)+1))))
}

// settle joins the clicks that waited for impression i, in their order of arrival. The label that comes of
// it counts all of them.
func (w *Window) settle(b *bucket, h uint64, i int, t int64) {
	r := b.imps[i]
	n := b.findClick(h, r.hi, r.lo)
	first := len(w.Labels)
	for n >= 0 {
		w.saveClick(b, n)
		c := &b.clicks[n]
		c.settled = true
		w.rehash(b, -hashPending(c))
		b.waiting--
		w.ledger.Pending--
		w.join(b, i, t, c.timeMS, c.offset, b.rawClick(c), false)
		n = int(c.next) - 1
	}
	if len(w.Labels) > first {
		w.Labels[first].Clicks = b.imps[i].clicks
	}
}

// join applies one click to the impression at position i of b. copyRaw: raw is the caller's memory.
func (w *Window) join(b *bucket, i int, t, timeMS, offset int64, raw []byte, copyRaw bool) {
	w.saveImpression(b, i)
	r := &b.imps[i]
	before := b.hashClicks(i)
	delay := max(timeMS-t, 0)
	if delay <= w.cfg.WindowMS {
		r.clicks++
		if r.clicks == 1 {
			b.open--
			w.ledger.Open--
		}
		if !w.replaying {
			w.joined(b, i, delay)
		}
	} else {
		if r.late == 0 {
			b.corr = append(b.corr, correction{delayMS: delay})
			r.late = uint32(len(b.corr))
		}
		b.corr[r.late-1].clicks++
		if !w.replaying {
			if copyRaw {
				raw = slices.Clone(raw)
			}
			w.ledger.LateClicks++
			w.late(schemas.LateClick, idOf(r.hi, r.lo), timeMS, Clicks, offset, raw)
		}
	}
	w.rehash(b, b.hashClicks(i)-before)
}

// joined counts a click inside the window, which has been applied, and labels its impression if it is the first.
func (w *Window) joined(b *bucket, i int, delay int64) {
	r := &b.imps[i]
	if r.clicks > 1 {
		w.ledger.Repeated++
		return
	}
	w.ledger.Joined++
	w.ledger.Positive++
	w.Labels = append(w.Labels, Label{
		ID: idOf(r.hi, r.lo), Raw: b.raw(i), Kind: eventpb.LabelKind_LABEL_KIND_POSITIVE, Clicked: true,
		DelayMS: delay, Clicks: 1, WatermarkMS: w.watermark, Version: 1,
	})
}

// rehash adds to the hash of a bucket, and so of the state; all arithmetic wraps.
func (w *Window) rehash(b *bucket, delta uint64) {
	b.hash += delta
	w.hash += delta
}

// hashClicks is the part of impression i in the bucket's hash that clicks change.
func (b *bucket) hashClicks(i int) uint64 {
	r := &b.imps[i]
	if r.clicks == 0 && r.late == 0 {
		return 0
	}
	h := uint64(r.clicks)
	if r.late != 0 {
		c := b.corr[r.late-1]
		h ^= mix(uint64(c.delayMS)) + uint64(c.clicks)<<32
	}
	return mix(r.lo ^ mix(r.hi^mix(h)))
}

// Punctuate takes a producer's promise that an input has no more events before lowMS.
func (w *Window) Punctuate(in Input, lowMS int64) { w.saw(in, lowMS) }

func (w *Window) saw(in Input, t int64) {
	if !w.replaying && t > w.max[in] {
		w.max[in] = t
	}
}

// Advance moves the watermark to what the inputs allow and closes the buckets that it passed. Call it once a
// batch: it costs nothing while the oldest bucket stays open.
func (w *Window) Advance() {
	if w.max[Impressions] == None || w.max[Clicks] == None {
		return
	}
	low := min(w.max[Impressions], w.max[Clicks]) - w.cfg.LatenessMS
	if low <= w.watermark {
		return
	}
	w.watermark = low
	n := 0
	for n < len(w.order) && w.closed(w.order[n].number) {
		w.close(w.order[n])
		n++
	}
	w.order = slices.Delete(w.order, 0, n)
	if invariant.Enabled {
		invariant.NoError("ledger after Advance", w.Check())
	}
}

// close labels what is left in a bucket and drops it.
func (w *Window) close(b *bucket) {
	w.touch(b)
	for i := range b.imps {
		r := &b.imps[i]
		if r.clicks > 0 {
			continue
		}
		l := Label{ID: idOf(r.hi, r.lo), Raw: b.raw(i), Kind: eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, WatermarkMS: w.watermark, Version: 1}
		w.Labels = append(w.Labels, l)
		w.ledger.FinalNegative++
		if r.late != 0 {
			c := b.corr[r.late-1]
			l.Kind, l.Clicked, l.DelayMS, l.Clicks, l.Version = eventpb.LabelKind_LABEL_KIND_CORRECTED, true, c.delayMS, c.clicks, 2
			w.Labels = append(w.Labels, l)
			w.ledger.Corrected++
		}
	}
	for i := range b.clicks {
		if c := &b.clicks[i]; !c.settled {
			w.late(schemas.LateOrphan, idOf(c.hi, c.lo), c.timeMS, Clicks, c.offset, b.rawClick(c))
			w.ledger.OrphanExpired++
		}
	}
	w.ledger.Open -= uint64(b.open)
	w.ledger.Pending -= uint64(b.waiting)
	w.hash -= b.hash
	delete(w.buckets, b.number)
	if w.last == b {
		w.last = nil
	}
	w.tx.dropped = append(w.tx.dropped, b)
}

func (w *Window) late(reason schemas.LateReason, id schemas.ImpressionID, timeMS int64, in Input, offset int64, raw []byte) {
	w.Lates = append(w.Lates, Late{Reason: reason, ID: id, TimeMS: timeMS, WatermarkMS: w.watermark, Input: in, Offset: offset, Value: raw})
}

// at returns the bucket of a number, a new one if need be.
func (w *Window) at(number int64) *bucket {
	if w.last != nil && w.last.number == number {
		return w.last
	}
	b := w.buckets[number]
	if b == nil {
		if n := len(w.free); n > 0 {
			b, w.free = w.free[n-1], w.free[:n-1]
		} else {
			b = &bucket{}
		}
		b.reset(number)
		w.buckets[number] = b
		i := sort.Search(len(w.order), func(i int) bool { return w.order[i].number >= number })
		w.order = slices.Insert(w.order, i, b)
		w.touch(b)
		b.mark.created = true
	}
	w.last = b
	return b
}

// Hash is equal for equal states: watermark, both maximum times, open buckets with their impressions, clicks
// and waiting clicks. It does not depend on the interleaving of the two inputs nor on the seed. It is a sum
// over what is in the state, so it is kept up to date at every change and costs nothing here.
func (w *Window) Hash() uint64 {
	return w.hash + mix(uint64(w.watermark)^mix(uint64(w.max[0])^mix(uint64(w.max[1])+1)))
}

// Check holds the ledger's equations, and the ledger's view of the state against the state.
func (w *Window) Check() error {
	open, waiting := uint64(0), uint64(0)
	sum := uint64(0)
	for _, b := range w.order {
		open += uint64(b.open)
		waiting += uint64(b.waiting)
		sum += b.hash
	}
	if sum != w.hash || len(w.order) != len(w.buckets) {
		return fmt.Errorf("window: hash %x and %d buckets in order, but the state has %x and %d", w.hash, len(w.order), sum, len(w.buckets))
	}
	if open != w.ledger.Open || waiting != w.ledger.Pending {
		return fmt.Errorf("%w: %d open and %d pending, but the state holds %d and %d", ErrLedger, w.ledger.Open, w.ledger.Pending, open, waiting)
	}
	return w.ledger.Check()
}
