package window

import (
	"slices"
	"sort"

	"ctrloop/internal/invariant"
)

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
