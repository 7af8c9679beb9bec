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

// maxArena bounds the records of one bucket: positions in it are 32 bits, and one more is used for "none".
const maxArena = math.MaxUint32 - 1

// maxBucketMS: a record has 16 bits for the milliseconds since the start of its bucket.
const maxBucketMS = 1 << 16

// maxFree and maxFreeBytes bound the memory of sealed and dropped buckets that is kept for new ones. In steady state a
// few cover batches that cross several seconds; a backlog crosses dozens of small buckets a batch.
const (
	maxFree      = 8
	maxFreeBytes = 4 << 20
)

// Config says how the join is done. Changing Window or Bucket over existing state is refused by the service.
type Config struct {
	WindowMS   int64 // a click counts until this long after its impression, ms
	LatenessMS int64 // allowed disorder: the watermark stays this far behind, ms
	BucketMS   int64 // width of a time bucket, ms; a final negative comes at most this much late
	// CorrectionMS is how long after its window an impression is remembered, ms: a click up to then corrects its label, and the
	// impression itself, if it comes only now, still gets one. 0: it is forgotten with its window.
	CorrectionMS int64
	// ObserveMS after the end of its bucket an impression without a click gets a provisional negative, ms. 0: none. With
	// it, provisional labels are version 1 and all others count from 2.
	ObserveMS int64
	// NegativeRate keeps one negative of so many, chosen by id, with this weight; 0 and 1 keep all.
	NegativeRate int64
	Seed         uint64 // of the hash tables, so that ids cannot be crafted to collide; no effect on results
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
	if c.BucketMS <= 0 || c.BucketMS > maxBucketMS {
		errs = append(errs, fmt.Errorf("bucket of %d ms: want 1 to %d", c.BucketMS, maxBucketMS))
	}
	if c.ObserveMS < 0 || c.ObserveMS >= c.WindowMS {
		errs = append(errs, fmt.Errorf("observation of %d ms: want 0 (none) or less than the window", c.ObserveMS))
	}
	if c.CorrectionMS < 0 || c.NegativeRate < 0 {
		errs = append(errs, fmt.Errorf("correction of %d ms and negative rate %d: want 0 or more", c.CorrectionMS, c.NegativeRate))
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
	Kind        eventpb.LabelKind
	Clicked     bool
	DelayMS     int64 // click time - impression time, at least 0; 0 without a click
	Clicks      uint32
	WatermarkMS int64 // None as long as one input is unheard of
	Version     uint32
	Weight      float64 // how many impressions it stands for
	Bot         bool    // a robot's is the click that it rests on

	record []byte
	names  *dictionary
}

// AppendRaw appends the impression as received, byte for byte. It may be called until Commit or Rollback.
func (l *Label) AppendRaw(b []byte) []byte { return l.names.appendRaw(b, l.record, &l.ID) }

// Category is the impression's field of that name, nil if it has none or is not in the order of our schema. It may be
// changed by nobody and read until Commit or Rollback.
func (l *Label) Category() []byte { return l.names.categoryOf(l.record) }

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

// ResetOutput forgets Labels and Lates.
func (w *Window) ResetOutput() { w.Labels, w.Lates = w.Labels[:0], w.Lates[:0] }

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

func (w *Window) hashID(hi, lo uint64) uint64 {
	return mix(hi ^ w.cfg.Seed ^ mix(lo+0x9e3779b97f4a7c15))
}

// Impression takes an impression as received. Its event time is in its id. raw is copied.
func (w *Window) Impression(raw []byte, id schemas.ImpressionID, offset int64) error {
	w.cut.CutAny(raw, id)
	return w.Insert(&w.cut, id, offset)
}

// Insert is Impression for one that has been cut already.
func (w *Window) Insert(parts *Parts, id schemas.ImpressionID, offset int64) error {
	t := id.UnixMilli()
	w.saw(Impressions, t)
	if !w.replaying {
		w.ledger.ImpressionsIn++
	}
	number := t / w.cfg.BucketMS
	if w.gone(number) {
		if !w.replaying {
			w.ledger.LateImpressions++
			w.late(schemas.LateImpression, id, t, Impressions, offset, slices.Clone(parts.raw))
		}
		return nil
	}
	h := w.hashID(id.Hi(), id.Lo())
	b := w.at(number)
	rid := recordIDOf(id, t-b.startMS)
	if b.byImp.full() {
		b.byImp.grow(b.byImp.n + 1)
	}
	_, found, slot := b.findHot(h, rid)
	if !found && b.base != nil {
		var err error
		if _, found, err = b.base.find(h, rid, w.head[:]); err != nil {
			return err
		}
	}
	if found {
		if !w.replaying {
			w.ledger.Duplicate++
		}
		return nil
	}
	if b.held()+len(parts.raw)+maxRecordOverhead > maxArena {
		return fmt.Errorf("window: bucket at %d ms is full (%d impressions): use more partitions or a smaller bucket", b.startMS, b.imps())
	}
	w.touch(b)
	off := w.insert(b, parts, h, slot, id, rid, offset)
	if b.waiting > 0 {
		if err := w.settle(b, h, rid, off); err != nil {
			return err
		}
	}
	if !w.replaying && w.closed(number) {
		w.label(b, b.arena[off:], b.clicksOf(b.state(ref{false, off}))) // there is nothing more to wait for
	}
	return nil
}

// maxRecordOverhead is more than a record is longer than its impression.
const maxRecordOverhead = 128

// insert adds a record to the arena and to a free slot of its index.
func (w *Window) insert(b *bucket, parts *Parts, h, place uint64, id schemas.ImpressionID, rid recordID, offset int64) uint32 {
	if b.firstImp < 0 {
		b.firstImp = offset
	}
	off := uint32(len(b.arena))
	b.byImp.slots[place] = slot(h, off)
	b.byImp.n++
	b.arena = w.names.appendRecord(b.arena, rid, parts)
	w.rehash(b, mix(id.Hi()^mix(id.Lo()^mix(uint64(offset)))))
	b.open++
	if !w.closed(b.number) {
		w.ledger.Open++
	}
	return off
}

// fill puts the records of an arena into an index with room for them.
func (w *Window) fill(b *bucket, x *index, arena []byte) {
	for off := 0; off < len(arena); off += recordSize(arena[off:]) {
		x.put(w.hashRecord(b, idAt(arena[off:])), uint32(off))
	}
}

func (w *Window) hashRecord(b *bucket, rid recordID) uint64 {
	id := rid.of(b.startMS)
	return w.hashID(id.Hi(), id.Lo())
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

// Click takes a click as received; timeMS is when it happened. raw is copied.
func (w *Window) Click(raw []byte, id schemas.ImpressionID, timeMS, offset int64) error {
	w.saw(Clicks, timeMS)
	if !w.replaying {
		w.ledger.ClicksIn++
	}
	t := id.UnixMilli()
	number := t / w.cfg.BucketMS
	if w.gone(number) {
		if !w.replaying {
			w.ledger.LateClicks++
			w.late(schemas.LateClickAfterClose, id, timeMS, Clicks, offset, slices.Clone(raw))
		}
		return nil
	}
	h := w.hashID(id.Hi(), id.Lo())
	b := w.at(number)
	rid := recordIDOf(id, t-b.startMS)
	if len(b.clkMem)+len(raw) > maxArena || len(b.clicks) >= math.MaxUint32-1 {
		return fmt.Errorf(
			"window: bucket at %d ms is full (%d waiting clicks): use more partitions or a smaller bucket",
			b.startMS,
			len(b.clicks),
		)
	}
	w.touch(b)
	if b.firstC < 0 {
		b.firstC = offset
	}
	r, found, err := w.find(b, h, rid)
	switch {
	case err != nil:
		return err
	case found:
		return w.join(b, r, id, timeMS, offset, raw, arrived)
	}
	w.wait(b, raw, h, rid, timeMS, offset)
	return nil
}

// wait puts a click aside until its impression comes or the bucket closes.
func (w *Window) wait(b *bucket, raw []byte, h uint64, id recordID, timeMS, offset int64) {
	i := len(b.clicks)
	head := b.findClick(h, id)
	if head < 0 {
		if b.byClick.full() {
			b.byClick.grow(b.byClick.n + 1)
		}
		b.byClick.put(h, uint32(i))
	}
	b.clicks = append(b.clicks, pendingClick{id: id, timeMS: timeMS, offset: offset, off: uint32(len(b.clkMem)), size: uint32(len(raw))})
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
	w.rehash(b, b.hashPending(&b.clicks[i]))
	b.waiting++
	switch {
	case !w.closed(b.number):
		w.ledger.Pending++
	case !w.replaying:
		w.orphan(b, &b.clicks[i])
	}
}

// orphan gives up a click: its window is over, and its impression has not come. If it comes after all, it finds the click.
func (w *Window) orphan(b *bucket, c *pendingClick) {
	w.late(schemas.LateOrphan, c.id.of(b.startMS), c.timeMS, Clicks, c.offset, b.rawClick(c))
	w.ledger.OrphanExpired++
}

func (b *bucket) hashPending(c *pendingClick) uint64 {
	id := c.id.of(b.startMS)
	return mix(id.Hi() ^ mix(id.Lo()^mix(uint64(c.timeMS)^mix(uint64(c.offset)+1))))
}

// settle joins the clicks that waited for the impression at off, in their order of arrival. The label that
// comes of it counts all of them.
func (w *Window) settle(b *bucket, h uint64, rid recordID, off uint32) error {
	n := b.findClick(h, rid)
	first := len(w.Labels)
	closed := w.closed(b.number)
	id := rid.of(b.startMS)
	for n >= 0 {
		w.saveClick(b, n)
		c := &b.clicks[n]
		c.settled = true
		w.rehash(b, -b.hashPending(c))
		b.waiting--
		if !closed {
			w.ledger.Pending--
		} else if !w.replaying {
			w.ledger.OrphanExpired-- // it was reported as one
		}
		if err := w.join(b, ref{false, off}, id, c.timeMS, c.offset, b.rawClick(c), waited); err != nil {
			return err
		}
		n = int(c.next) - 1
	}
	if len(w.Labels) > first {
		w.Labels[first].Clicks = b.clicksOf(b.state(ref{false, off})).clicks
	}
	return nil
}

// How a click comes to its impression.
const (
	arrived = false // the impression was there, raw is the caller's memory
	waited  = true  // the click was
)

// join applies one click to the impression at r. What it does to the state does not depend on whether the window is over, so
// that a rebuild need not know which came first.
func (w *Window) join(b *bucket, r ref, id schemas.ImpressionID, timeMS, offset int64, raw []byte, waiting bool) error {
	w.saveState(b, r)
	state := b.state(r)
	was := b.clicksOf(state)
	now := was
	delay := max(timeMS-id.UnixMilli(), 0)
	inside, closed := delay <= w.cfg.WindowMS, w.closed(b.number)
	if inside {
		now.clicks++
		if now.clicks == 1 {
			b.open--
			if !closed {
				w.ledger.Open--
			}
		}
	} else if !botClick(raw) { // a robot's late click corrects nothing
		if now.late++; now.late == 1 || delay < now.delay {
			now.delay = delay
		}
	}
	w.store(b, r, state, now)
	w.rehash(b, hashClicks(id, now)-hashClicks(id, was))
	switch {
	case w.replaying:
		return nil
	case inside && (!closed || waiting):
		return w.joined(b, r, id, now.clicks, delay, raw)
	}
	w.ledger.LateClicks++
	if closed && waiting {
		return nil // reported already, and judged with its impression
	}
	reason := schemas.LateClick
	if inside {
		reason = schemas.LateClickAfterClose
	}
	corrects := closed && delay <= w.horizon() && !w.clicked(was) && !botClick(raw)
	if !waiting {
		raw = slices.Clone(raw)
	}
	w.late(reason, id, timeMS, Clicks, offset, raw)
	if corrects {
		rec, err := b.record(r)
		if err != nil {
			return err
		}
		w.correct(b, rec, delay, 1)
	}
	return nil
}

// clicked says whether an impression was clicked, as far as anybody is told.
func (w *Window) clicked(e extra) bool { return e.clicks > 0 || e.late > 0 && e.delay <= w.horizon() }

// store keeps what is known of an impression's clicks.
func (w *Window) store(b *bucket, r ref, state uint32, now extra) {
	switch {
	case state&stateExtra != 0:
		b.extra[state&^stateExtra] = now
	case now.late == 0 && now.clicks < stateExtra:
		b.setState(r, now.clicks)
	default:
		b.extra = append(b.extra, now)
		b.setState(r, stateExtra|uint32(len(b.extra)-1))
	}
}

// joined counts a click inside the window, which has been applied, and labels its impression if it is the first.
func (w *Window) joined(b *bucket, r ref, id schemas.ImpressionID, clicks uint32, delay int64, raw []byte) error {
	if clicks > 1 {
		w.ledger.Repeated++
		return nil
	}
	rec, err := b.record(r)
	if err != nil {
		return err
	}
	w.ledger.Joined++
	w.ledger.Positive++
	w.Labels = append(w.Labels, Label{
		ID: id, Kind: eventpb.LabelKind_LABEL_KIND_POSITIVE, Clicked: true,
		DelayMS: delay, Clicks: 1, WatermarkMS: w.watermark, Version: w.first(), Weight: 1, Bot: botClick(raw), record: rec, names: w.names,
	})
	return nil
}

// botClick says whether a click is marked as a robot's. Bytes that are no click are nobody's.
func botClick(raw []byte) bool {
	var v eventpb.ClickView
	return v.Read(raw) == nil && v.Bot
}

// rehash adds to the hash of a bucket, and so of the state; all arithmetic wraps.
func (w *Window) rehash(b *bucket, delta uint64) {
	b.hash += delta
	w.hash += delta
}

// hashClicks is the part of an impression in its bucket's hash that clicks change.
func hashClicks(id schemas.ImpressionID, e extra) uint64 {
	if e.clicks == 0 && e.late == 0 {
		return 0
	}
	h := uint64(e.clicks)
	if e.late != 0 {
		h ^= mix(uint64(e.delay)) + uint64(e.late)<<32
	}
	return mix(id.Lo() ^ mix(id.Hi()^mix(h)))
}

// first is the version of an impression's first verdict that is not provisional.
func (w *Window) first() uint32 {
	if w.cfg.ObserveMS > 0 {
		return 2
	}
	return 1
}

// Punctuate takes a promise that an input has no more events before a time. It fails when there are more sources than
// a commit's metadata can name.
func (w *Window) Punctuate(in Input, p Promise) error {
	if p.Parts == 0 || len(p.Covers) > 0 { // who only says how many parts there are says nothing of time
		w.saw(in, p.LowMS)
	}
	if w.replaying || p.Source == "" && p.Parts == 0 && len(p.Covers) == 0 {
		return nil
	}
	s, err := w.sources[in].with(p)
	if err == nil {
		w.sources[in] = s
	}
	return err
}

// progress is up to where an input is complete but for Lateness, ms, or None.
func (w *Window) progress(in Input) int64 {
	if len(w.sources[in]) > 0 {
		return w.sources[in].low()
	}
	return w.max[in]
}

func (w *Window) saw(in Input, t int64) {
	switch {
	case !w.replaying:
		w.max[in] = max(w.max[in], t)
	case in == Impressions:
		w.replayedMS = max(w.replayedMS, t)
	}
}

// Advance moves the watermark towards what the inputs allow and closes the buckets that it passes, so many that about
// limit impressions and waiting clicks are settled; one bucket at least, and all of them if limit is 0. Call it once a
// batch: it costs nothing while the oldest bucket stays open. Behind says whether another call has something to do.
func (w *Window) Advance(limit int) error {
	target := w.allowed()
	if target <= w.watermark {
		return nil
	}
	before := w.watermark
	w.watermark = w.reach(target, limit)
	for i := w.firstOpen(before); i < len(w.order) && w.closed(w.order[i].number); i++ {
		if err := w.close(w.order[i]); err != nil {
			return err
		}
	}
	w.floor = max(w.floor, w.watermark-w.horizon())
	n := 0
	for n < len(w.order) && w.gone(w.order[n].number) {
		if err := w.drop(w.order[n]); err != nil {
			return err
		}
		n++
	}
	w.order = slices.Delete(w.order, 0, n)
	if err := w.observe(before, target); err != nil {
		return err
	}
	if invariant.Enabled {
		invariant.NoError("ledger after Advance", w.Check())
	}
	return nil
}

// firstOpen is the place of the first bucket that a watermark leaves open.
func (w *Window) firstOpen(watermark int64) int {
	return sort.Search(len(w.order), func(i int) bool { return w.closeTime(w.order[i]) > watermark })
}

// Behind says whether the inputs allow a higher watermark than the one that Advance got to.
func (w *Window) Behind() bool { return w.allowed() > w.watermark }

// allowed is the watermark that the inputs allow, None as long as one is not heard of.
func (w *Window) allowed() int64 {
	if low := min(w.progress(Impressions), w.progress(Clicks)); low != None {
		return low - w.cfg.LatenessMS
	}
	return None
}

// reach is how far towards target the watermark may go so that it settles about limit impressions and waiting clicks.
// It is target, or the time at which a bucket closes or has been observed: the state has nothing between two of these.
func (w *Window) reach(target int64, limit int) int64 {
	if limit <= 0 {
		return target
	}
	due := func(at func(*bucket) int64, ms int64) int {
		return sort.Search(len(w.order), func(i int) bool { return at(w.order[i]) > ms })
	}
	c, closing := w.firstOpen(w.watermark), due(w.closeTime, target)
	o, observed := 0, 0
	if w.cfg.ObserveMS > 0 { // what target closes is not observed any more
		o, observed = max(closing, due(w.observeTime, w.watermark)), due(w.observeTime, target)
	}
	at, work := w.watermark, 0
	for c < closing || o < observed {
		var next int64
		if b := w.order[min(c, len(w.order)-1)]; o >= observed || c < closing && w.closeTime(b) <= w.observeTime(w.order[o]) {
			next, work = w.closeTime(b), work+b.open+b.waiting
			c++
		} else {
			next, work = w.observeTime(w.order[o]), work+w.order[o].open
			o++
		}
		if work > limit && at > w.watermark {
			return at
		}
		at = next
	}
	return target
}

// closeTime is the watermark at which a bucket closes.
func (w *Window) closeTime(b *bucket) int64 { return b.startMS + w.cfg.BucketMS + w.cfg.WindowMS }

// observeTime is the watermark at which a bucket has been watched for Config.ObserveMS.
func (w *Window) observeTime(b *bucket) int64 { return b.startMS + w.cfg.BucketMS + w.cfg.ObserveMS }

// observe gives provisional negatives to the impressions without a click of the buckets whose observation has ended
// since the watermark was before, unless the watermark is on its way (target) to close them. It is a function of the
// watermark and of what the inputs allow: an impression that comes later gets none, and nothing of it need be remembered.
func (w *Window) observe(before, target int64) error {
	if w.cfg.ObserveMS == 0 {
		return nil
	}
	i := sort.Search(len(w.order), func(i int) bool { b := w.order[i]; return w.observeTime(b) > before && w.closeTime(b) > target })
	for ; i < len(w.order) && w.observeTime(w.order[i]) <= w.watermark; i++ {
		b := w.order[i]
		if b.base != nil {
			data, err := b.base.load()
			if err != nil {
				return fmt.Errorf("window: observe bucket at %d ms: %w", b.startMS, err)
			}
			w.observeArena(b, true, data)
		}
		w.observeArena(b, false, b.arena)
	}
	return nil
}

func (w *Window) observeArena(b *bucket, inBase bool, arena []byte) {
	for off := 0; off < len(arena); {
		size := recordSize(arena[off:])
		rec := arena[off : off+size : off+size]
		at := ref{inBase, uint32(off)}
		off += size
		if b.clicksOf(b.state(at)).clicks > 0 {
			continue
		}
		if l := w.negative(b, rec, eventpb.LabelKind_LABEL_KIND_PROVISIONAL_NEGATIVE, 1); l.Weight > 0 {
			w.Labels = append(w.Labels, l)
			w.ledger.Provisional++
		}
	}
}

// negative is a label without a click; its weight is 0 if the sample leaves it out.
func (w *Window) negative(b *bucket, rec []byte, kind eventpb.LabelKind, version uint32) Label {
	l := Label{ID: idAt(rec).of(b.startMS), Kind: kind, WatermarkMS: w.watermark, Version: version, Weight: 1, record: rec, names: w.names}
	if n := uint64(w.cfg.NegativeRate); n > 1 {
		// The seed must not be in it: the same impression is in the sample after a restart.
		if l.Weight = float64(n); mix(l.ID.Hi()^mix(l.ID.Lo()))%n != 0 {
			l.Weight = 0
		}
	}
	return l
}

// close labels what is left in a bucket whose window is over, and gives up the clicks that wait in it.
func (w *Window) close(b *bucket) error {
	if b.base != nil {
		data, err := b.base.load()
		if err != nil {
			return fmt.Errorf("window: close bucket at %d ms: %w", b.startMS, err)
		}
		w.closeArena(b, true, data)
	}
	w.closeArena(b, false, b.arena)
	for i := range b.clicks {
		if c := &b.clicks[i]; !c.settled {
			w.orphan(b, c)
		}
	}
	w.ledger.Open -= uint64(b.open)
	w.ledger.Pending -= uint64(b.waiting)
	return nil
}

// drop forgets a bucket that nothing is to be corrected in any more.
func (w *Window) drop(b *bucket) error {
	w.touch(b)
	if b.base != nil {
		data, err := b.base.load()
		if err != nil {
			return fmt.Errorf("window: forget bucket at %d ms: %w", b.startMS, err)
		}
		b.base.closing = data
	}
	w.hash -= b.hash
	delete(w.buckets, b.number)
	if w.last == b {
		w.last = nil
	}
	w.tx.dropped = append(w.tx.dropped, b)
	return nil
}

// closeArena labels the impressions of an arena that have no label.
func (w *Window) closeArena(b *bucket, inBase bool, arena []byte) {
	for off := 0; off < len(arena); {
		size := recordSize(arena[off:])
		rec := arena[off : off+size : off+size]
		now := b.clicksOf(b.state(ref{inBase, uint32(off)}))
		off += size
		w.label(b, rec, now)
	}
}

// label gives the verdict on an impression without a click in its window, which is over, and corrects it at once if a later
// click came before.
func (w *Window) label(b *bucket, rec []byte, now extra) {
	if now.clicks > 0 {
		return
	}
	l := w.negative(b, rec, eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, w.first())
	w.ledger.FinalNegative++
	if l.Weight > 0 {
		w.Labels = append(w.Labels, l)
	} else {
		w.ledger.SampledOut++
	}
	if w.clicked(now) {
		w.correct(b, rec, now.delay, now.late)
	}
}

// correct takes a final negative back.
func (w *Window) correct(b *bucket, rec []byte, delay int64, clicks uint32) {
	w.Labels = append(w.Labels, Label{
		ID: idAt(rec).of(b.startMS), Kind: eventpb.LabelKind_LABEL_KIND_CORRECTED, Clicked: true, DelayMS: delay, Clicks: clicks,
		WatermarkMS: w.watermark, Version: w.first() + 1, Weight: 1, record: rec, names: w.names,
	})
	w.ledger.Corrected++
}

func (w *Window) late(reason schemas.LateReason, id schemas.ImpressionID, timeMS int64, in Input, offset int64, raw []byte) {
	w.Lates = append(w.Lates, Late{Reason: reason, ID: id, TimeMS: timeMS, WatermarkMS: w.watermark, Input: in, Offset: offset, Value: raw})
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

// Hash is equal for equal states: watermark, both maximum times, sources of punctuation, open buckets with their impressions, clicks
// and waiting clicks. It does not depend on the interleaving of the two inputs nor on the seed. It is a sum
// over what is in the state, so it is kept up to date at every change and costs nothing here.
func (w *Window) Hash() uint64 {
	return w.hash + mix(uint64(w.watermark)^mix(uint64(w.max[0])^mix(uint64(w.max[1])+1))) + w.sources[0].hash(0) + w.sources[1].hash(1)
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
