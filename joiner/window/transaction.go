package window

import (
	"cmp"
	"errors"
	"fmt"
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

// forget gives back what a bucket holds.
func (w *Window) forget(b *bucket) {
	if b.base != nil {
		w.releaseAll(b.base.closing)
	}
	w.releaseAll(b.arena)
	w.recycle(b)
}

// releaseAll takes the records of an arena out of the dictionary's counts.
func (w *Window) releaseAll(arena []byte) {
	for off := 0; off < len(arena); {
		off += w.names.releaseRecord(arena[off:])
	}
}

func (w *Window) recycle(b *bucket) {
	b.base = nil
	if cap(b.arena) > 0 { // a sealed one has given its memory back already
		w.keep(b)
	}
}

// keep puts a bucket's memory aside for a new one, if there is not enough already.
func (w *Window) keep(b *bucket) {
	n := b.memory()
	if len(w.free) < maxFree || w.freeBytes+n <= maxFreeBytes {
		w.free = append(w.free, b)
		w.freeBytes += n
	}
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

// Snapshot is all that a restart needs besides the inputs themselves.
type Snapshot struct {
	WatermarkMS  int64
	FloorMS      int64    // event time before which every bucket is forgotten
	MaxTimeMS    [2]int64 // by Input
	NextOffset   [2]int64 // by Input: the first offset not consumed
	RewindOffset [2]int64 // by Input: no earlier offset shapes the state
	Ledger       Ledger   // Open and Pending included, though the state implies them: a rebuild is checked against them
	Hash         uint64
	Sources      [2]string // by Input: who promised what
}

// Snapshot describes the state, given the first offset of each input that was not consumed.
func (w *Window) Snapshot(next [2]int64) Snapshot {
	s := Snapshot{
		WatermarkMS: w.watermark, FloorMS: w.floor, MaxTimeMS: w.max, NextOffset: next, RewindOffset: next, Ledger: w.ledger, Hash: w.Hash(),
	}
	for in := range s.Sources {
		s.Sources[in] = w.sources[in].String()
	}
	for _, b := range w.order {
		if b.firstImp >= 0 {
			s.RewindOffset[Impressions] = min(s.RewindOffset[Impressions], b.firstImp)
		}
		if b.firstC >= 0 {
			s.RewindOffset[Clicks] = min(s.RewindOffset[Clicks], b.firstC)
		}
	}
	return s
}

// Restore starts the rebuild of a snapshot in a new window. Then feed Impression and Click the inputs from
// RewindOffset up to NextOffset, either input first, and call Restored. Sources that cannot be read are left out, which
// Restored then notices.
func Restore(cfg Config, s Snapshot) *Window {
	w := New(cfg)
	for in := range s.Sources {
		w.sources[in] = parseSources(s.Sources[in])
	}
	w.watermark, w.floor, w.max, w.ledger = s.WatermarkMS, s.FloorMS, s.MaxTimeMS, s.Ledger
	w.ledger.Open, w.ledger.Pending = 0, 0
	w.replaying, w.replayedMS = true, None
	return w
}

// Restored ends a rebuild. It fails when the state is not the one of the snapshot: the inputs have changed.
func (w *Window) Restored(s Snapshot) error {
	w.replaying = false
	w.Commit()
	return w.compare(s)
}

func (w *Window) compare(s Snapshot) error {
	if err := w.Check(); err != nil {
		return fmt.Errorf("%w: %w", ErrRebuild, err)
	}
	if h := w.Hash(); h != s.Hash {
		return fmt.Errorf("%w: state hash %016x, committed %016x (open %d and %d, pending %d and %d)",
			ErrRebuild, h, s.Hash, w.ledger.Open, s.Ledger.Open, w.ledger.Pending, s.Ledger.Pending)
	}
	return nil
}

// ErrRebuild says that the inputs no longer give the state that was committed.
var ErrRebuild = errors.New("rebuilt join state differs from the committed one")
