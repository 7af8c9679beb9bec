package evidence

import (
	"cmp"
	"fmt"
	"slices"
)

// Hour is what an hour of impression time adds up to, over all cells.
type Hour struct {
	HourMS                  int64 // its start, Unix milliseconds
	Impressions, Clicks     int64
	Inverse, ClickedInverse int64 // as in Sums
}

// String is for people.
func (h Hour) String() string {
	return fmt.Sprintf("%d impressions, %d clicks, sums of 1/p %d and %d", h.Impressions, h.Clicks, h.Inverse, h.ClickedInverse)
}

// Hours adds up what counts of the hours that begin in [fromMS, untilMS).
func (f *Fold) Hours(fromMS, untilMS int64) []Hour {
	sums := map[int64]Hour{}
	for _, r := range f.Rows() {
		if r.HourMS < fromMS || r.HourMS >= untilMS || r.Counted == (Sums{}) {
			continue
		}
		h := sums[r.HourMS]
		h.HourMS = r.HourMS
		h.Impressions += r.Counted.Impressions
		h.Clicks += r.Counted.Clicks
		h.Inverse += r.Counted.Inverse
		h.ClickedInverse += r.Counted.ClickedInverse
		sums[r.HourMS] = h
	}
	out := make([]Hour, 0, len(sums))
	for _, h := range sums {
		out = append(out, h)
	}
	slices.SortFunc(out, func(a, b Hour) int { return cmp.Compare(a.HourMS, b.HourMS) })
	return out
}

// Difference is an hour that evidence and the warehouse do not agree on. An hour that one of them does not have is zero there.
type Difference struct{ Evidence, Warehouse Hour }

// Compare returns the hours that differ, in order.
func Compare(evidence, warehouse []Hour) []Difference {
	by := map[int64]*Difference{}
	at := func(h Hour) *Difference {
		if by[h.HourMS] == nil {
			by[h.HourMS] = &Difference{Hour{HourMS: h.HourMS}, Hour{HourMS: h.HourMS}}
		}
		return by[h.HourMS]
	}
	for _, h := range evidence {
		at(h).Evidence = h
	}
	for _, h := range warehouse {
		at(h).Warehouse = h
	}
	var out []Difference
	for _, d := range by {
		if d.Evidence != d.Warehouse {
			out = append(out, *d)
		}
	}
	slices.SortFunc(out, func(a, b Difference) int { return cmp.Compare(a.Evidence.HourMS, b.Evidence.HourMS) })
	return out
}

// SettledMS is the start of the hour before which nothing changes any more in what is mature up to matureMS.
func (c Config) SettledMS(matureMS int64) int64 {
	return max(0, (matureMS-(c.horizonMS()-c.matureAfter()))/hourMS*hourMS)
}

// CeilHour is the first start of an hour at a time or after it.
func CeilHour(ms int64) int64 { return (ms + hourMS - 1) / hourMS * hourMS }
