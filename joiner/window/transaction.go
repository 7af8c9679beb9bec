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
	max       [2]int64
	ledger    Ledger
	hash      uint64

	touched []*bucket // each with its mark
	dropped []*bucket // closed; kept until Commit, because labels still point into their arenas
	imps    []savedImpression
	clicks  []savedClick
}

// savedImpression is an impression that was there at the mark, as it was before a click.
type savedImpression struct {
	b    *bucket
	i    int
	old  impression
	corr correction // of old, if old.late != 0
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
	tx.watermark, tx.max, tx.ledger, tx.hash = w.watermark, w.max, w.ledger, w.hash
	clear(tx.touched)
	clear(tx.dropped)
	clear(tx.imps)
	clear(tx.clicks)
	tx.touched, tx.dropped, tx.imps, tx.clicks = tx.touched[:0], tx.dropped[:0], tx.imps[:0], tx.clicks[:0]
}

// touch takes a bucket's mark before the transaction's first change to it.
func (w *Window) touch(b *bucket) {
	if b.epoch == w.tx.epoch {
		return
	}
	b.epoch = w.tx.epoch
	b.mark = mark{
		imps: len(b.imps), arena: len(b.arena), corr: len(b.corr), clicks: len(b.clicks), clkMem: len(b.clkMem),
		waiting: b.waiting, open: b.open, hash: b.hash, firstImp: b.firstImp, firstC: b.firstC,
	}
	w.tx.touched = append(w.tx.touched, b)
}

func (w *Window) saveImpression(b *bucket, i int) {
	if i >= b.mark.imps {
		return // goes as a whole
	}
	s := savedImpression{b: b, i: i, old: b.imps[i]}
	if s.old.late != 0 {
		s.corr = b.corr[s.old.late-1]
	}
	w.tx.imps = append(w.tx.imps, s)
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
		if len(w.free) < maxFree {
			w.free = append(w.free, b)
		}
	}
	w.ResetOutput()
	w.begin()
}

// Rollback undoes everything since the last Commit: state, hash, ledger and output are as they were then.
func (w *Window) Rollback() {
	tx := &w.tx
	for _, b := range tx.dropped {
		w.buckets[b.number] = b
	}
	for _, s := range slices.Backward(tx.imps) {
		s.b.imps[s.i] = s.old
		if s.old.late != 0 {
			s.b.corr[s.old.late-1] = s.corr
		}
	}
	for _, b := range tx.touched {
		w.truncate(b)
	}
	// After truncate, which still needs the heads of chains as they are now.
	for _, s := range slices.Backward(tx.clicks) {
		s.b.clicks[s.i] = s.old
	}
	clear(w.order)
	w.order = slices.AppendSeq(w.order[:0], maps.Values(w.buckets))
	slices.SortFunc(w.order, func(a, b *bucket) int { return cmp.Compare(a.number, b.number) })
	w.last = nil
	w.watermark, w.max, w.ledger, w.hash = tx.watermark, tx.max, tx.ledger, tx.hash
	w.ResetOutput()
	w.begin()
}

// truncate cuts a bucket back to its mark.
func (w *Window) truncate(b *bucket) {
	m := b.mark
	if m.created {
		delete(w.buckets, b.number)
		if len(w.free) < maxFree {
			w.free = append(w.free, b)
		}
		return
	}
	for i := len(b.imps) - 1; i >= m.imps; i-- {
		b.byImp.remove(w.hashID(b.imps[i].hi, b.imps[i].lo), i)
	}
	for i := len(b.clicks) - 1; i >= m.clicks; i-- {
		if c := &b.clicks[i]; c.tail != 0 {
			b.byClick.remove(w.hashID(c.hi, c.lo), i)
		}
	}
	b.imps, b.arena, b.corr = b.imps[:m.imps], b.arena[:m.arena], b.corr[:m.corr]
	b.clicks, b.clkMem = b.clicks[:m.clicks], b.clkMem[:m.clkMem]
	b.waiting, b.open, b.hash = m.waiting, m.open, m.hash
	b.firstImp, b.firstC = m.firstImp, m.firstC
}

// Snapshot is all that a restart needs besides the inputs themselves.
type Snapshot struct {
	WatermarkMS  int64
	MaxTimeMS    [2]int64 // by Input
	NextOffset   [2]int64 // by Input: the first offset not consumed
	RewindOffset [2]int64 // by Input: no earlier offset shapes the state
	Ledger       Ledger   // Open and Pending included, though the state implies them: a rebuild is checked against them
	Hash         uint64
}

// Snapshot describes the state, given the first offset of each input that was not consumed.
func (w *Window) Snapshot(next [2]int64) Snapshot {
	s := Snapshot{WatermarkMS: w.watermark, MaxTimeMS: w.max, NextOffset: next, RewindOffset: next, Ledger: w.ledger, Hash: w.Hash()}
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
// RewindOffset up to NextOffset, either input first, and call Restored.
func Restore(cfg Config, s Snapshot) *Window {
	w := New(cfg)
	w.watermark, w.max, w.ledger = s.WatermarkMS, s.MaxTimeMS, s.Ledger
	w.ledger.Open, w.ledger.Pending = 0, 0
	w.replaying = true
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
