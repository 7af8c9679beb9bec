package window

import (
	"cmp"
	"maps"
	"slices"
)

// transaction is what it takes to undo everything since the last Commit.
type transaction struct {
	epoch     uint64
	watermark int64
	floor     int64
	max       [2]int64
	sources   [2]sources
	ledger    Ledger
	hash      uint64

	touched []*bucket // each with its mark
	dropped []*bucket // gone; kept until Commit, because labels still point into their arenas
	states  []savedState
	clicks  []savedClick
}

// savedState is an impression that was there at the mark, as it was before a click.
type savedState struct {
	b     *bucket
	r     ref
	old   uint32
	extra extra // if old says that there is one
}

// savedClick is a waiting click that was there at the mark.
type savedClick struct {
	b   *bucket
	i   int
	old pendingClick
}

func (w *Window) begin() {
	tx := &w.tx
	tx.epoch++
	tx.watermark, tx.floor, tx.max, tx.sources, tx.ledger, tx.hash = w.watermark, w.floor, w.max, w.sources, w.ledger, w.hash
	clear(tx.touched)
	clear(tx.dropped)
	clear(tx.states)
	clear(tx.clicks)
	tx.touched, tx.dropped, tx.states, tx.clicks = tx.touched[:0], tx.dropped[:0], tx.states[:0], tx.clicks[:0]
}

// touch takes a bucket's mark before the transaction's first change to it.
func (w *Window) touch(b *bucket) {
	if b.epoch == w.tx.epoch {
		return
	}
	b.epoch = w.tx.epoch
	b.mark = mark{
		arena: len(b.arena), extra: len(b.extra), clicks: len(b.clicks), clkMem: len(b.clkMem),
		waiting: b.waiting, open: b.open, hash: b.hash, firstImp: b.firstImp, firstC: b.firstC,
	}
	w.tx.touched = append(w.tx.touched, b)
}

func (w *Window) saveState(b *bucket, r ref) {
	if !r.inBase && int(r.off) >= b.mark.arena {
		return // goes as a whole
	}
	s := savedState{b: b, r: r, old: b.state(r)}
	if s.old&stateExtra != 0 {
		s.extra = b.extra[s.old&^stateExtra]
	}
	w.tx.states = append(w.tx.states, s)
}

func (w *Window) saveClick(b *bucket, i int) {
	if i < b.mark.clicks {
		w.tx.clicks = append(w.tx.clicks, savedClick{b: b, i: i, old: b.clicks[i]})
	}
}

// Commit makes everything since the last Commit final. The memory that Labels and Lates point to may be used
// again afterwards, so the caller calls it once its outputs are durable. It also forgets the output.
func (w *Window) Commit() {
	for _, b := range w.tx.dropped {
		w.forget(b)
	}
	for _, b := range w.tx.touched {
		if b.base != nil && w.buckets[b.number] == b && w.sealable(b) {
			w.seal(b)
		}
	}
	w.unsealed = slices.DeleteFunc(w.unsealed, func(b *bucket) bool {
		if w.buckets[b.number] != b {
			return true // closed, or never was
		}
		if !w.sealable(b) {
			return false
		}
		w.seal(b)
		return true
	})
	w.ResetOutput()
	w.begin()
}

// Rollback undoes everything since the last Commit: state, hash, ledger and output are as they were then.
func (w *Window) Rollback() {
	tx := &w.tx
	for _, b := range tx.dropped {
		w.buckets[b.number] = b
		if b.base != nil {
			b.base.closing = nil
		}
	}
	for _, s := range slices.Backward(tx.states) {
		s.b.setState(s.r, s.old)
		if s.old&stateExtra != 0 {
			s.b.extra[s.old&^stateExtra] = s.extra
		}
	}
	for _, b := range tx.touched {
		w.truncate(b)
	}
	// After truncate, which still needs the heads of chains as they are now.
	for _, s := range slices.Backward(tx.clicks) {
		s.b.clicks[s.i] = s.old
	}
	w.unsealed = slices.DeleteFunc(w.unsealed, func(b *bucket) bool { return w.buckets[b.number] != b })
	clear(w.order)
	w.order = slices.AppendSeq(w.order[:0], maps.Values(w.buckets))
	slices.SortFunc(w.order, func(a, b *bucket) int { return cmp.Compare(a.number, b.number) })
	w.last = nil
	w.watermark, w.floor, w.max, w.sources, w.ledger, w.hash = tx.watermark, tx.floor, tx.max, tx.sources, tx.ledger, tx.hash
	w.ResetOutput()
	w.begin()
}

// truncate cuts a bucket back to its mark.
func (w *Window) truncate(b *bucket) {
	m := b.mark
	w.releaseAll(b.arena[m.arena:])
	if m.created {
		delete(w.buckets, b.number)
		b.arena = b.arena[:0]
		w.recycle(b)
		return
	}
	w.unindex(b, m.arena)
	for i := len(b.clicks) - 1; i >= m.clicks; i-- {
		if c := &b.clicks[i]; c.tail != 0 {
			b.byClick.remove(w.hashRecord(b, c.id), uint32(i))
		}
	}
	b.arena, b.extra = b.arena[:m.arena], b.extra[:m.extra]
	b.clicks, b.clkMem = b.clicks[:m.clicks], b.clkMem[:m.clkMem]
	b.waiting, b.open, b.hash = m.waiting, m.open, m.hash
	b.firstImp, b.firstC = m.firstImp, m.firstC
}

// unindex takes the records from a position of the arena on out of the index.
func (w *Window) unindex(b *bucket, from int) {
	for off := from; off < len(b.arena); off += recordSize(b.arena[off:]) {
		b.byImp.remove(w.hashRecord(b, idAt(b.arena[off:])), uint32(off))
	}
}
