package window

import (
	"errors"
	"fmt"
)

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
