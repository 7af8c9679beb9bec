package window

import (
	"fmt"
	"math"
	"slices"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// maxArena bounds the records of one bucket: positions in it are 32 bits, and one more is used for "none".
const maxArena = math.MaxUint32 - 1

// maxRecordOverhead is more than a record is longer than its impression.
const maxRecordOverhead = 128

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

func (w *Window) saw(in Input, t int64) {
	switch {
	case !w.replaying:
		w.max[in] = max(w.max[in], t)
	case in == Impressions:
		w.replayedMS = max(w.replayedMS, t)
	}
}
