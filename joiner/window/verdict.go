package window

import (
	"fmt"
	"sort"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

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

// correct takes a final negative back.
func (w *Window) correct(b *bucket, rec []byte, delay int64, clicks uint32) {
	w.Labels = append(w.Labels, Label{
		ID: idAt(rec).of(b.startMS), Kind: eventpb.LabelKind_LABEL_KIND_CORRECTED, Clicked: true, DelayMS: delay, Clicks: clicks,
		WatermarkMS: w.watermark, Version: w.first() + 1, Weight: 1, record: rec, names: w.names,
	})
	w.ledger.Corrected++
}

// first is the version of an impression's first verdict that is not provisional.
func (w *Window) first() uint32 {
	if w.cfg.ObserveMS > 0 {
		return 2
	}
	return 1
}

// clicked says whether an impression was clicked, as far as anybody is told.
func (w *Window) clicked(e extra) bool { return e.clicks > 0 || e.late > 0 && e.delay <= w.horizon() }

// orphan gives up a click: its window is over, and its impression has not come. If it comes after all, it finds the click.
func (w *Window) orphan(b *bucket, c *pendingClick) {
	w.late(schemas.LateOrphan, c.id.of(b.startMS), c.timeMS, Clicks, c.offset, b.rawClick(c))
	w.ledger.OrphanExpired++
}

func (w *Window) late(reason schemas.LateReason, id schemas.ImpressionID, timeMS int64, in Input, offset int64, raw []byte) {
	w.Lates = append(w.Lates, Late{Reason: reason, ID: id, TimeMS: timeMS, WatermarkMS: w.watermark, Input: in, Offset: offset, Value: raw})
}

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
