// Package evidencetest draws labels as a join writes them, and counts them as the warehouse does: it keeps them all and looks at
// the last version of each impression. It shares no code with what it is an oracle of.
package evidencetest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// Times of the join, milliseconds.
type Times struct{ WindowMS, CorrectionMS, BucketMS int64 }

// Base is the first hour of every history, Unix milliseconds.
const Base = 1_780_000_000_000 / hourMS * hourMS

const hourMS = 3_600_000

// Label is one label of a history.
type Label struct {
	ID          schemas.ImpressionID
	Seen        *eventpb.Impression
	Kind        eventpb.LabelKind
	Version     uint32
	Suspect     bool
	Bot         bool
	WatermarkMS int64
	Partition   int32
	Unreadable  bool
}

// Encode is the value of the label's record.
func (l Label) Encode() []byte {
	if l.Unreadable {
		return []byte{0x08, 0x01}
	}
	return marshal(&eventpb.Label{
		Impression: marshal(l.Seen), Kind: l.Kind, Clicked: l.Clicked(), WatermarkMs: l.WatermarkMS, Version: l.Version, Weight: 1,
		Suspect: l.Suspect, Bot: l.Bot,
	})
}

func marshal(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

// Clicked says whether the label is a click's.
func (l Label) Clicked() bool {
	return l.Kind == eventpb.LabelKind_LABEL_KIND_POSITIVE || l.Kind == eventpb.LabelKind_LABEL_KIND_CORRECTED
}

// History draws the labels of n impressions over a span, in the order in which a join writes them: by watermark.
func History(seed uint64, times Times, partitions int32, n int, span time.Duration) []Label {
	r := rand.New(rand.NewPCG(seed, 7))
	var all []Label
	for range n {
		ms := Base + 600_000 + r.Int64N(span.Milliseconds())
		var random [10]byte
		for i := range random {
			random[i] = byte(r.Uint32())
		}
		id := schemas.NewImpressionID(time.UnixMilli(ms), random)
		one := Label{ID: id, Partition: int32(r.IntN(int(partitions))), Seen: &eventpb.Impression{
			Id: id[:], Product: fmt.Sprint("product-", r.IntN(3)), Creative: fmt.Sprint("creative-", r.IntN(3)),
			Placement: []string{"home", "search"}[r.IntN(2)], Position: uint32(1 + r.IntN(2)), Category: fmt.Sprint("c/", r.IntN(3)),
			Propensity: []float64{0, 0.25, 1, 0.3, 1e-9, 2}[r.IntN(6)], Bot: r.IntN(20) == 0,
		}}
		say := func(kind eventpb.LabelKind, delay int64, bot bool) {
			one.Version++
			one.Kind, one.Suspect, one.Bot, one.WatermarkMS = kind, r.IntN(3) == 0, bot, ms+delay
			all = append(all, one)
		}
		close := times.WindowMS + times.BucketMS
		switch k := r.IntN(20); {
		case k < 5:
			say(eventpb.LabelKind_LABEL_KIND_POSITIVE, r.Int64N(times.WindowMS), r.IntN(10) == 0)
		case k < 9:
			say(eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, close, false)
			say(eventpb.LabelKind_LABEL_KIND_CORRECTED, close+r.Int64N(times.CorrectionMS), r.IntN(4) == 0)
		case k < 11:
			say(eventpb.LabelKind_LABEL_KIND_PROVISIONAL_NEGATIVE, times.WindowMS/2, false)
			say(eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, close, false)
		case k < 12:
			one.Unreadable = true
			say(eventpb.LabelKind_LABEL_KIND_POSITIVE, 0, false)
		default:
			say(eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, close, false)
		}
	}
	slices.SortStableFunc(all, func(a, b Label) int { return int(a.WatermarkMS - b.WatermarkMS) })
	return all
}

// Key names a cell.
type Key struct {
	Product, Placement, Creative string
	HourMS                       int64
	Position                     uint16
}

// Key of the label's cell.
func (l Label) Key() Key {
	return Key{
		Product: l.Seen.Product, Placement: l.Seen.Placement, Creative: l.Seen.Creative, Position: uint16(l.Seen.Position),
		HourMS: l.ID.UnixMilli() / hourMS * hourMS,
	}
}

// Sums of a cell; 1/p in units of 2^-20, at most 4096.
type Sums struct {
	Impressions, Clicks          int64
	Inverse, ClickedInverse      int64
	Capped                       int64
	Unweighted, UnweightedClicks int64
}

// Count is what a cell must hold.
type Count struct {
	Category         string
	Trusted, Suspect Sums
	FirstMS, LastMS  int64
}

// CountAll counts the labels; mature, if it is not nil, says of which impressions.
func CountAll(labels []Label, mature func(Label) bool) map[Key]Count {
	latest := map[schemas.ImpressionID]Label{}
	out := map[Key]Count{}
	for _, l := range labels {
		if l.Unreadable || l.Kind == eventpb.LabelKind_LABEL_KIND_PROVISIONAL_NEGATIVE || mature != nil && !mature(l) {
			continue
		}
		if l.Version > latest[l.ID].Version {
			latest[l.ID] = l
		}
		if l.Seen.Bot || l.Bot && l.Kind == eventpb.LabelKind_LABEL_KIND_POSITIVE {
			continue
		}
		c, ms := out[l.Key()], l.ID.UnixMilli()
		if c.FirstMS == 0 || ms < c.FirstMS {
			c.FirstMS = ms
		}
		c.LastMS, c.Category = max(c.LastMS, ms), max(c.Category, l.Seen.Category)
		out[l.Key()] = c
	}
	for _, l := range latest {
		if l.Seen.Bot || l.Bot {
			continue
		}
		c := out[l.Key()]
		s := &c.Trusted
		if l.Suspect {
			s = &c.Suspect
		}
		s.count(l)
		out[l.Key()] = c
	}
	return out
}

func (s *Sums) count(l Label) {
	p := l.Seen.Propensity
	known, weight := p > 0 && p <= 1, int64(0)
	if known {
		weight = int64(min(1/p, 4096) * (1 << 20))
	}
	s.Impressions++
	s.Inverse += weight
	if known && 1/p > 4096 {
		s.Capped++
	}
	if !known {
		s.Unweighted++
	}
	if !l.Clicked() {
		return
	}
	s.Clicks++
	s.ClickedInverse += weight
	if !known {
		s.UnweightedClicks++
	}
}
