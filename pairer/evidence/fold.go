package evidence

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"ctrloop/schemas/eventpb"
)

// Progress is how far a partition of evidence.v1 goes.
type Progress struct {
	Sequence    int64
	Next        int64 // of labels.v1: everything before it is in the cells
	WatermarkMS int64 // of the newest label; 0: none yet
	FloorMS     int64 // hours before it are closed
	WindowMS    int64 // of the join, its bucket included
	SinceMS     int64 // impressions before it may be missing; 0: none
}

// matureMS is the time up to which all negatives of the partition have come.
func (p Progress) matureMS() int64 { return p.WatermarkMS - p.WindowMS }

// Row is what all partitions know of one cell.
type Row struct {
	Key
	Category        string
	Counted         Sums  // trusted ones, and suspect ones that a review has cleared
	Held            Sums  // suspect ones that nothing is to be learned from
	FirstMS, LastMS int64 // impression times that were ever counted here
}

// Fold adds up the cells of all partitions. It is used by one goroutine at a time.
type Fold struct {
	parts   map[int32]*foldPart
	reviews map[ReviewKey]string // the last word
	names   map[string]string    // one string for equal texts
	bytes   int
}

// foldPart is one partition. Cells stand for their records, by the key of the record.
type foldPart struct {
	began    bool
	progress Progress
	cells    map[string]*foldCell
	pending  map[string]*foldCell // of a transaction of which the progress has not come
}

type foldCell struct {
	Key
	Value
}

// NewFold returns an empty fold.
func NewFold() *Fold {
	return &Fold{parts: map[int32]*foldPart{}, reviews: map[ReviewKey]string{}, names: map[string]string{}}
}

// Apply takes the next record of a partition of evidence.v1. What a transaction of the stage wrote counts once its progress has
// come, so that the fold stands at a commit of each partition; only what is older than the first progress, which compaction may
// have left behind alone, counts at once.
func (f *Fold) Apply(partition int32, key, value []byte) error {
	if len(key) == 0 {
		return fmt.Errorf("%w: empty", errKey)
	}
	p := f.parts[partition]
	if p == nil {
		p = &foldPart{cells: map[string]*foldCell{}, pending: map[string]*foldCell{}}
		f.parts[partition] = p
	}
	switch key[0] {
	case kindCell:
		cell, _, err := cutGeneration(key)
		if err != nil {
			return err
		}
		c, err := f.cell(cell, value)
		if err != nil {
			return err
		}
		if p.began {
			p.pending[string(key)] = c
		} else {
			f.put(p, string(key), c)
		}
		return nil
	case kindErasure:
		cell, err := cutErasure(key)
		if err != nil {
			return err
		}
		c, err := f.cell(cell, value)
		if err != nil {
			return err
		}
		f.put(p, string(key), c)
		return nil
	case kindProgress:
		return f.progress(p, value)
	case kindReview:
		return f.review(partition, key, value)
	case kindDoubt:
		return nil // the stage's own
	}
	return fmt.Errorf("%w: %q: this program is older than the one that wrote it", errKey, key)
}

func (f *Fold) cell(key, value []byte) (*foldCell, error) {
	k, err := parseKey(key)
	if err != nil {
		return nil, err
	}
	v, err := decodeValue(value)
	if err != nil {
		return nil, err
	}
	k.Product, k.Placement, k.Creative, v.Category = f.name(k.Product), f.name(k.Placement), f.name(k.Creative), f.name(v.Category)
	return &foldCell{k, v}, nil
}

func (f *Fold) name(s string) string {
	if one, ok := f.names[s]; ok {
		return one
	}
	f.names[s] = s
	f.bytes += len(s) + nameRounds
	return s
}

func (f *Fold) put(p *foldPart, key string, c *foldCell) {
	if old := p.cells[key]; old != nil {
		f.bytes -= cellBytes + len(key) + cap(old.Early)*earlyBytes
	}
	f.bytes += cellBytes + len(key) + cap(c.Early)*earlyBytes
	p.cells[key] = c
}

func (f *Fold) progress(p *foldPart, value []byte) error {
	var m eventpb.EvidenceProgress
	if err := proto.Unmarshal(value, &m); err != nil {
		return fmt.Errorf("progress of evidence: %w: %w", eventpb.ErrWire, err)
	}
	p.progress = Progress{
		Sequence: m.Sequence, Next: m.NextOffset, WatermarkMS: m.WatermarkMs, FloorMS: m.FloorMs, WindowMS: m.WindowMs,
		SinceMS: m.SinceMs,
	}
	p.began = true
	for key, c := range p.pending {
		f.put(p, key, c)
	}
	clear(p.pending)
	return nil
}

// The words of a review.
const (
	verdictOpen      = "open"
	verdictCleared   = "cleared"
	verdictConfirmed = "confirmed"
)

func (f *Fold) review(partition int32, key, value []byte) error {
	k, err := parseReviewKey(partition, key)
	if err != nil {
		return err
	}
	var m eventpb.EvidenceReview
	if err := proto.Unmarshal(value, &m); err != nil {
		return fmt.Errorf("review of suspect labels: %w: %w", eventpb.ErrWire, err)
	}
	switch m.Verdict {
	case verdictCleared, verdictConfirmed:
		f.reviews[k] = m.Verdict
	default: // open, a tombstone, or a word that this release does not know: nothing is learned from the labels
		delete(f.reviews, k)
	}
	return nil
}

// Progress of each partition of which there is any.
func (f *Fold) Progress() map[int32]Progress {
	out := map[int32]Progress{}
	for n, p := range f.parts {
		if p.began {
			out[n] = p.progress
		}
	}
	return out
}

// Vector is the offset of labels.v1, by partition, before which everything is counted.
func (f *Fold) Vector() map[int32]int64 {
	out := map[int32]int64{}
	for n, p := range f.Progress() {
		out[n] = p.Next
	}
	return out
}

// MatureMS is the time up to which everything has come, in all partitions that have a watermark; 0: nowhere.
func (f *Fold) MatureMS() int64 {
	least := int64(0)
	for _, p := range f.Progress() {
		if at := p.matureMS(); p.WatermarkMS > 0 && (least == 0 || at < least) {
			least = at
		}
	}
	return max(least, 0)
}

// SinceMS is the time from which on nothing is missing in any partition; 0: from the first label on.
func (f *Fold) SinceMS() int64 {
	since := int64(0)
	for _, p := range f.Progress() {
		since = max(since, p.SinceMS)
	}
	return since
}

// Bytes is the memory of the cells, about.
func (f *Fold) Bytes() int { return f.bytes }

// Rows adds up what is mature, in the order of keys. Rows of which nothing is left are not there.
func (f *Fold) Rows() []Row { return f.rows(false) }

// rows adds up; all: also what is not mature, and all suspect labels held.
func (f *Fold) rows(all bool) []Row {
	sums := map[Key]*Row{}
	for n, p := range f.parts {
		for _, c := range p.cells {
			r := sums[c.Key]
			if r == nil {
				r = &Row{Key: c.Key}
				sums[c.Key] = r
			}
			held := &r.Held
			if !all && f.reviews[ReviewKey{c.Product, c.Placement, c.HourMS, n}] == verdictCleared {
				held = &r.Counted
			}
			r.Counted.add(&c.Trusted, 1)
			held.add(&c.Suspect, 1)
			for i := range c.Early {
				e := &c.Early[i]
				if all || c.HourMS+(int64(e.Minute)+1)*minuteMS <= p.progress.matureMS() {
					r.Counted.add(&e.Trusted, 1)
					held.add(&e.Suspect, 1)
				}
			}
			if c.FirstMS != 0 && (r.FirstMS == 0 || c.FirstMS < r.FirstMS) {
				r.FirstMS = c.FirstMS
			}
			r.LastMS, r.Category = max(r.LastMS, c.LastMS), max(r.Category, c.Category)
		}
	}
	out := make([]Row, 0, len(sums))
	for _, r := range sums {
		if r.Counted != (Sums{}) || r.Held != (Sums{}) {
			out = append(out, *r)
		}
	}
	slices.SortFunc(out, func(a, b Row) int { return compareKeys(a.Key, b.Key) })
	return out
}

func compareKeys(a, b Key) int {
	return cmp.Or(
		cmp.Compare(a.Product, b.Product), cmp.Compare(a.Placement, b.Placement), cmp.Compare(a.Creative, b.Creative),
		cmp.Compare(a.HourMS, b.HourMS), cmp.Compare(a.Position, b.Position),
	)
}

// Digest is a SHA-256, in hex, of everything that was counted, mature or not. It is the same for the same labels and erasures in
// any order, over any number of partitions, and over any number of generations.
func (f *Fold) Digest() string {
	h := sha256.New()
	var b []byte
	for _, r := range f.rows(true) {
		b = r.Key.append(b[:0])
		b = binary.BigEndian.AppendUint32(b, uint32(len(r.Key.Creative))) // the key's last part has no length
		b = binary.BigEndian.AppendUint32(b, uint32(len(r.Category)))
		b = append(b, r.Category...)
		for _, s := range []*Sums{&r.Counted, &r.Held} {
			for _, n := range []int64{s.Impressions, s.Clicks, s.Inverse, s.ClickedInverse, s.Capped, s.Unweighted, s.UnweightedClicks} {
				b = binary.BigEndian.AppendUint64(b, uint64(n))
			}
		}
		b = binary.BigEndian.AppendUint64(b, uint64(r.FirstMS))
		b = binary.BigEndian.AppendUint64(b, uint64(r.LastMS))
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))
}
