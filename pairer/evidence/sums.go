package evidence

import (
	"google.golang.org/protobuf/encoding/protowire"

	"ctrloop/schemas/eventpb"
)

// InverseUnit is how many units of Sums.Inverse are 1.
const InverseUnit = 1 << 20

// MaxInverse is the largest 1/p that counts; a larger one is cut and counted in Sums.Capped. With it, 2^31 impressions fit
// into a sum of 63 bits.
const MaxInverse = 1 << 12

// Sums is what impressions add up to. They are whole numbers, so that the order does not matter. Those of an erasure are negative.
type Sums struct {
	Impressions int64
	Clicks      int64 // impressions with a click
	// Inverse is the sum of 1/p over impressions and ClickedInverse over those with a click, p the propensity, in units of
	// 1/InverseUnit; each is rounded down.
	Inverse, ClickedInverse int64
	Capped                  int64 // impressions whose 1/p was cut to MaxInverse
	// Unweighted are impressions without a propensity in (0, 1], UnweightedClicks those of them with a click. They are in
	// Impressions and Clicks, not in Inverse and ClickedInverse.
	Unweighted, UnweightedClicks int64
}

// add adds o n times; n is 1 or -1.
func (s *Sums) add(o *Sums, n int64) {
	s.Impressions += n * o.Impressions
	s.Clicks += n * o.Clicks
	s.Inverse += n * o.Inverse
	s.ClickedInverse += n * o.ClickedInverse
	s.Capped += n * o.Capped
	s.Unweighted += n * o.Unweighted
	s.UnweightedClicks += n * o.UnweightedClicks
}

// shown and clicked are what one impression is in a sum, and what its click is besides.
func shown(p float64) Sums {
	inverse, capped, known := inverseOf(p)
	s := Sums{Impressions: 1, Inverse: inverse}
	if capped {
		s.Capped = 1
	}
	if !known {
		s.Unweighted = 1
	}
	return s
}

func clicked(p float64) Sums {
	inverse, _, known := inverseOf(p)
	s := Sums{Clicks: 1, ClickedInverse: inverse}
	if !known {
		s.UnweightedClicks = 1
	}
	return s
}

// inverseOf is 1/p in units of 1/InverseUnit. The warehouse's audit computes the same in SQL: a division, the bound, a product
// with a power of two, the fraction cut off.
func inverseOf(p float64) (inverse int64, capped, known bool) {
	if !(p > 0 && p <= 1) { // NaN too
		return 0, false, false
	}
	q := 1 / p
	if q > MaxInverse {
		return MaxInverse * InverseUnit, true, true
	}
	return int64(q * InverseUnit), false, true
}

// sumsRoom is more than encoded sums take.
const sumsRoom = 96

// append appends the sums as a field of a message, an eventpb.EvidenceSums; nothing for none.
func (s *Sums) append(b []byte, field protowire.Number) []byte {
	var room [sumsRoom]byte
	sums := room[:0]
	for i, n := range [...]int64{s.Impressions, s.Clicks, s.Inverse, s.ClickedInverse, s.Capped, s.Unweighted, s.UnweightedClicks} {
		sums = appendNumber(sums, protowire.Number(i+1), protowire.EncodeZigZag(n))
	}
	if len(sums) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), sums)
}

func sumsOf(m *eventpb.EvidenceSums) Sums {
	return Sums{
		Impressions: m.GetImpressions(), Clicks: m.GetClicks(), Inverse: m.GetInverse(), ClickedInverse: m.GetClickedInverse(),
		Capped: m.GetCapped(), Unweighted: m.GetUnweighted(), UnweightedClicks: m.GetUnweightedClicks(),
	}
}
