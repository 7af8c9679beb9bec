package bench

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"ctrloop/internal/stream"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// startMS is the event time of the first impression: any time in the past.
const startMS = 1_790_000_000_000

// Traffic is a made-up log of which every right label is known from the number of the impression alone. Impressions
// come in the order of event time; each has one click at most, so that a plain join of the two topics has one result
// an impression.
type Traffic struct {
	Impressions int           `json:"impressions"`
	Rate        int           `json:"rate"`       // impressions a second of event time
	ClickRate   float64       `json:"click_rate"` // clicks by impressions
	MeanDelay   time.Duration `json:"mean_delay_ns"`
	Window      time.Duration `json:"window_ns"`
	Seed        uint64        `json:"seed"`
}

// draw returns 64 bits for an impression; what tells its several draws apart.
func (t Traffic) draw(i int, what uint64) uint64 {
	// SplitMix64 over the three: every impression can be drawn by itself.
	x := t.Seed*0x9e3779b97f4a7c15 + uint64(i)*0xbf58476d1ce4e5b9 + what*0x94d049bb133111eb
	for range 2 {
		x += 0x9e3779b97f4a7c15
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		x ^= x >> 31
	}
	return x
}

func unit(x uint64) float64 { return float64(x>>11) / (1 << 53) }

// timeMS of impression i.
func (t Traffic) timeMS(i int) int64 { return startMS + int64(i)*1000/int64(t.Rate) }

// endMS is after every event time.
func (t Traffic) endMS() int64 { return t.timeMS(t.Impressions) + 24*time.Hour.Milliseconds() }

// id of impression i. Its low bytes hold the number, so that a label is looked up without a table.
func (t Traffic) id(i int) schemas.ImpressionID {
	var random [10]byte
	binary.BigEndian.PutUint32(random[:], uint32(t.draw(i, 1)))
	binary.BigEndian.PutUint32(random[6:], uint32(i))
	return schemas.NewImpressionID(time.UnixMilli(t.timeMS(i)), random)
}

// number of the impression with this id, and whether it is one of this traffic's.
func (t Traffic) number(id []byte) (int, bool) {
	if len(id) != 16 {
		return 0, false
	}
	i := int(binary.BigEndian.Uint32(id[12:]))
	return i, i < t.Impressions && t.id(i) == schemas.ImpressionID(id)
}

// delayMS of the click on impression i, or -1 without one.
func (t Traffic) delayMS(i int) int64 {
	if unit(t.draw(i, 2)) >= t.ClickRate {
		return -1
	}
	return int64(-math.Log(1-unit(t.draw(i, 3))) * float64(t.MeanDelay.Milliseconds()))
}

// positive says whether impression i was clicked inside the window: the oracle.
func (t Traffic) positive(i int) bool {
	d := t.delayMS(i)
	return d >= 0 && d <= t.Window.Milliseconds()
}

// names repeat as they do in traffic: some products, more creatives.
func (t Traffic) impression(i int) *stream.Record { return impressionRecord(t.id(i), t.draw(i, 4)) }

func impressionRecord(id schemas.ImpressionID, x uint64) *stream.Record {
	return &stream.Record{
		Topic: schemas.TopicImpressions, Key: id[:], Timestamp: id.Time(),
		Value: encode(&eventpb.Impression{
			Id: id[:], RequestId: id[8:], User: x, Product: fmt.Sprintf("p-%d", x%400), Creative: fmt.Sprintf("c-%d", x%2400), Placement: "feed",
			Position: uint32(
				x%5,
			) + 1, Campaign: "spring", Category: "home/lamps", Experiment: "e7", Variant: [2]string{"control", "treatment"}[x>>60&1],
			ModelVersion: "pm-12", Policy: "s-33", Propensity: 0.125, Schema: 1,
		}),
	}
}

func clickRecord(id schemas.ImpressionID, atMS int64) *stream.Record {
	return &stream.Record{
		Topic: schemas.TopicClicks, Key: id[:], Timestamp: time.UnixMilli(atMS),
		Value: encode(&eventpb.Click{ImpressionId: id[:], Id: id[12:], TimeMs: atMS, Schema: 1}),
	}
}

// encode marshals a message that is known to be encodable.
func encode(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err) // invalid UTF-8 or a missing required field: there is neither
	}
	return b
}

// punctuation for a partition of an input: no event before ms is to come.
func punctuation(topic string, partition int32, ms int64) *stream.Record {
	return &stream.Record{
		Topic: topic, Partition: partition, Timestamp: time.UnixMilli(ms),
		Headers: []stream.RecordHeader{{Key: schemas.HeaderPunctuation}},
		Value:   encode(&eventpb.Punctuation{Source: "bench", LowWatermarkMs: ms}),
	}
}

type dueClick struct {
	atMS int64
	i    int
}

// chunks calls fn with the log in pieces of `size` impressions and the clicks of the same stretch of event time,
// both in the order of time; the last piece has the clicks that come after the last impression.
func (t Traffic) chunks(size int, fn func(imps, clks []*stream.Record) error) error {
	var due []dueClick // not written yet
	for from := 0; from < t.Impressions; from += size {
		to := min(from+size, t.Impressions)
		imps := make([]*stream.Record, 0, to-from)
		for i := from; i < to; i++ {
			imps = append(imps, t.impression(i))
			if d := t.delayMS(i); d >= 0 {
				due = append(due, dueClick{t.timeMS(i) + d, i})
			}
		}
		slices.SortFunc(due, func(a, b dueClick) int { return cmp.Compare(a.atMS, b.atMS) })
		n := len(due)
		if to < t.Impressions {
			n, _ = slices.BinarySearchFunc(due, t.timeMS(to), func(c dueClick, ms int64) int { return cmp.Compare(c.atMS, ms) })
		}
		clks := make([]*stream.Record, 0, n)
		for _, c := range due[:n] {
			clks = append(clks, clickRecord(t.id(c.i), c.atMS))
		}
		due = slices.Delete(due, 0, n)
		if err := fn(imps, clks); err != nil {
			return err
		}
	}
	return nil
}
