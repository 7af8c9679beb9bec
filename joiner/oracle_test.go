package joiner

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/go-faster/city"
	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/joiner/window"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

const epochMS = 1_790_000_000_000

// truth knows every event that was ever written and says which labels are right. It shares no code with the
// join: it looks at the finished topics only.
type truth struct {
	cfg        Config
	partitions int32
	span       time.Duration // of event time
	endMS      int64
	imps       []*stream.Record
	clks       []*stream.Record
	orderly    map[schemas.ImpressionID]bool // within the allowed disorder: nothing of it may be late
	late       map[string]bool               // clicks written too late on purpose, by click id
	poison     int
}

// newTruth draws a history: disorder up to the bound, re-sent impressions (with other bytes), repeated clicks,
// clicks beyond the window, orphans, clicks that precede their impression, very late events, poison.
func newTruth(seed uint64, cfg Config, partitions int32, n int, span time.Duration) *truth {
	r := rand.New(rand.NewPCG(seed, 0))
	tr := &truth{cfg: cfg, partitions: partitions, span: span, orderly: map[schemas.ImpressionID]bool{}, late: map[string]bool{}}
	type timed struct {
		at int64 // when it is written, event time plus disorder
		r  *stream.Record
	}
	var imps, clks []timed
	disorder := func() int64 { return r.Int64N(cfg.Lateness.Milliseconds() + 1) }
	for i := range n {
		t := epochMS + int64(i)*span.Milliseconds()/int64(n)
		id := schemas.NewImpressionID(time.UnixMilli(t), random(r))
		tr.orderly[id] = true
		orphan := r.IntN(50) == 0
		if !orphan {
			imps = append(imps, timed{t + disorder(), tr.impression(id, 1)})
			for range []int{0, 0, 0, 0, 0, 0, 0, 0, 1, 2}[r.IntN(10)] {
				imps = append(imps, timed{t + disorder(), tr.impression(id, 2+r.Uint32N(5))})
			}
		}
		if orphan || r.IntN(4) == 0 {
			for k := range []int{1, 1, 1, 2, 5}[r.IntN(5)] {
				delay := int64(r.ExpFloat64() * cfg.Window.Seconds() * 300)
				at := t - 20 + min(delay, 3*cfg.Window.Milliseconds())
				clks = append(clks, timed{at + disorder(), tr.click(id, at, k)})
			}
		}
		if r.IntN(200) == 0 { // far too late, if the other side has gone on: either verdict is right
			delete(tr.orderly, id)
			imps = append(imps, timed{t + 5*cfg.Window.Milliseconds(), tr.impression(id, 9)})
			clks = append(clks, timed{t + 5*cfg.Window.Milliseconds(), tr.click(id, t+1000, 99)})
		}
	}
	byTime := func(a, b timed) int { return cmp.Compare(a.at, b.at) }
	slices.SortStableFunc(imps, byTime)
	slices.SortStableFunc(clks, byTime)
	for _, x := range imps {
		tr.imps = append(tr.imps, x.r)
	}
	for _, x := range clks {
		tr.clks = append(tr.clks, x.r)
	}
	tr.endMS = epochMS + span.Milliseconds() + 10*cfg.Window.Milliseconds()
	return tr
}

func random(r *rand.Rand) (b [10]byte) {
	binary.BigEndian.PutUint64(b[:], r.Uint64())
	binary.BigEndian.PutUint16(b[8:], uint16(r.Uint32()))
	return b
}

func (tr *truth) impression(id schemas.ImpressionID, position uint32) *stream.Record {
	return &stream.Record{
		Topic: schemas.TopicImpressions, Key: id[:], Timestamp: id.Time(),
		Value: marshal(
			&eventpb.Impression{Id: id[:], Product: "product-17", Creative: "c", Placement: "feed", Position: position, Propensity: 0.25, Schema: 1},
		),
	}
}

func (tr *truth) click(id schemas.ImpressionID, at int64, n int) *stream.Record {
	return &stream.Record{
		Topic: schemas.TopicClicks, Key: id[:], Timestamp: time.UnixMilli(at),
		Value: marshal(&eventpb.Click{ImpressionId: id[:], Id: []byte(strconv.Itoa(n)), TimeMs: at, Schema: 1}),
	}
}

// poisons are records that no ingest would write: none may stop the joiner, all must be kept.
func (tr *truth) poisons() []*stream.Record {
	id := schemas.NewImpressionID(time.UnixMilli(epochMS), [10]byte{7})
	cut := tr.impression(id, 1)
	cut.Value = cut.Value[:len(cut.Value)-3]
	foreign := tr.click(id, epochMS, 1)
	foreign.Key = []byte("another key")
	timeless := tr.click(id, 0, 1)
	timeless.Timestamp = time.UnixMilli(epochMS)
	rs := []*stream.Record{cut, foreign, timeless}
	tr.poison += len(rs)
	return rs
}

// punctuation for every partition of both inputs.
func (tr *truth) punctuation(ms int64) (rs []*stream.Record) {
	for p := range tr.partitions {
		for _, topic := range inputTopic {
			rs = append(rs, &stream.Record{
				Topic: topic, Partition: p, Timestamp: time.UnixMilli(ms),
				Headers: []stream.RecordHeader{{Key: schemas.HeaderPunctuation}},
				Value:   marshal(&eventpb.Punctuation{Source: "test", LowWatermarkMs: ms}),
			})
		}
	}
	return rs
}

// place of a record in an input.
type place struct {
	topic     string
	partition int32
	offset    int64
}

// verdicts is what the joiner wrote.
type verdicts struct {
	labels map[schemas.ImpressionID][]*eventpb.Label
	late   map[place]schemas.LateReason
	count  map[schemas.LateReason]uint64
}

// verify compares the finished topics with the truth.
func (tr *truth) verify(t *testing.T, kafka stream.Config, ledger Ledger) {
	t.Helper()
	streamtest.AwaitNoTransaction(t, kafka, schemas.TopicLabels, schemas.TopicLate, schemas.TopicAudit, schemas.TopicDeadLetters)
	v := tr.read(t, kafka)
	impsOf, clksOf := tr.byID(t, kafka, schemas.TopicImpressions), tr.byID(t, kafka, schemas.TopicClicks)
	want := window.Ledger{
		LateImpressions: v.count[schemas.LateImpression],
		OrphanExpired:   v.count[schemas.LateOrphan],
		LateClicks:      v.count[schemas.LateClick] + v.count[schemas.LateClickAfterClose],
	}
	for id, clicks := range clksOf {
		want.ClicksIn += uint64(len(clicks))
		if len(impsOf[id]) == 0 {
			tr.impression1(t, v, id, nil, clicks, &want)
		}
	}
	for id, imps := range impsOf {
		want.ImpressionsIn += uint64(len(imps))
		tr.impression1(t, v, id, imps, clksOf[id], &want)
		delete(v.labels, id)
	}
	for id, l := range v.labels {
		t.Errorf("spurious label of %s: %v", id, l)
	}
	if d := gocmp.Diff(want, ledger.Total); d != "" {
		t.Errorf("ledger: want -, got +:\n%s", d)
	}
	if !ledger.Balanced {
		t.Errorf("the ledger does not close: %+v", ledger)
	}
	tr.verifyAudit(t, kafka)
	dead := 0
	for _, rs := range streamtest.Records(t, kafka, schemas.TopicDeadLetters) {
		dead += len(rs)
	}
	if dead != tr.poison {
		t.Errorf("%d dead letters, want %d", dead, tr.poison)
	}
}

// impression1 checks everything that was written about one impression.
func (tr *truth) impression1(t *testing.T, v verdicts, id schemas.ImpressionID, imps, clicks []*stream.Record, want *window.Ledger) {
	t.Helper()
	var accepted []*stream.Record
	for _, r := range imps {
		if _, late := v.late[place{r.Topic, r.Partition, r.Offset}]; !late {
			accepted = append(accepted, r)
		} else if tr.orderly[id] {
			t.Errorf("%s came in time, reported late", id)
		}
	}
	// Delays of clicks: that made it positive, or may correct it, or may if it is remembered still.
	var joined, beyond, after []int64
	horizon := (tr.cfg.Window + tr.cfg.correction()).Milliseconds()
	for _, r := range clicks {
		at := new(eventpb.Click)
		if err := proto.Unmarshal(r.Value, at); err != nil {
			t.Fatal(err)
		}
		delay := max(at.TimeMs-id.UnixMilli(), 0)
		outside := delay > tr.cfg.Window.Milliseconds()
		switch reason, late := v.late[place{r.Topic, r.Partition, r.Offset}]; {
		case !late && !outside && len(accepted) > 0:
			joined = append(joined, delay)
		case !late:
			t.Errorf("click on %s after %d ms (%d impressions) is not reported", id, delay, len(accepted))
		case reason == schemas.LateOrphan && len(accepted) == 0:
		case reason == schemas.LateOrphan && !tr.orderly[id]: // its impression came when its window was over, and found it
			want.OrphanExpired--
			if !outside {
				joined = append(joined, delay)
			} else {
				want.LateClicks++
				beyond = append(beyond, delay)
			}
		case reason == schemas.LateClick && outside && len(accepted) > 0:
			beyond = append(beyond, delay)
		case reason == schemas.LateClickAfterClose && (delay > horizon || !tr.orderly[id]):
			after = append(after, delay)
		default:
			t.Errorf("click on %s after %d ms (%d impressions, orderly %v) reported as %s", id, delay, len(accepted), tr.orderly[id], reason)
		}
	}
	seen := len(beyond) + len(after) // a label says how many clicks had come, of those too that correct nothing
	inHorizon := func(delays []int64) []int64 {
		return slices.DeleteFunc(slices.Clone(delays), func(d int64) bool { return d > horizon })
	}
	beyond, after = inHorizon(beyond), inHorizon(after)
	var labels []*eventpb.Label
	got := v.labels[id]
	if len(accepted) > 0 {
		want.Duplicate += uint64(len(accepted) - 1)
		l := &eventpb.Label{Impression: accepted[0].Value, Kind: eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, Version: 1, Weight: 1}
		if len(joined) > 0 {
			l.Kind, l.Clicked, l.ClickDelayMs = eventpb.LabelKind_LABEL_KIND_POSITIVE, true, joined[0]
			want.Positive++
			want.Joined++
			want.Repeated += uint64(len(joined) - 1)
		} else {
			want.FinalNegative++
		}
		labels = append(labels, l)
		if len(joined) == 0 && (len(beyond) > 0 || len(after) > 0 && len(got) > 1) {
			corrected := &eventpb.Label{
				Impression: accepted[0].Value, Kind: eventpb.LabelKind_LABEL_KIND_CORRECTED, Clicked: true, Version: 2, Weight: 1,
			}
			// Which of its clicks, and how many of them, depends on whether they came before the window was over.
			if len(got) > 1 && slices.Contains(append(beyond, after...), got[1].ClickDelayMs) {
				corrected.ClickDelayMs = got[1].ClickDelayMs
			}
			if len(got) > 1 && got[1].Clicks >= 1 && int(got[1].Clicks) <= seen {
				corrected.Clicks = got[1].Clicks
			}
			labels = append(labels, corrected)
			want.Corrected++
		}
	}
	if len(got) != len(labels) {
		t.Errorf("%s: %d labels, want %d: %v", id, len(got), len(labels), got)
		return
	}
	for i, l := range labels {
		// Two things depend on how the inputs interleaved: how many clicks had come, and the watermark.
		if n := got[i].Clicks; l.Kind == eventpb.LabelKind_LABEL_KIND_POSITIVE && n >= 1 && n <= uint32(len(joined)) {
			l.Clicks = n
		}
		l.WatermarkMs = got[i].WatermarkMs
		if !proto.Equal(l, got[i]) {
			t.Errorf("%s: label %v, want %v", id, got[i], l)
		}
	}
}

func (tr *truth) byID(t *testing.T, kafka stream.Config, topic string) map[schemas.ImpressionID][]*stream.Record {
	out := map[schemas.ImpressionID][]*stream.Record{}
	for _, rs := range streamtest.Records(t, kafka, topic) {
		for _, r := range rs {
			var err error
			if topic == schemas.TopicImpressions {
				err = proto.Unmarshal(r.Value, new(eventpb.Impression))
			} else {
				c := new(eventpb.Click)
				if err = proto.Unmarshal(r.Value, c); err == nil && c.TimeMs == 0 {
					continue // poison
				}
			}
			if len(r.Headers) > 0 || len(r.Key) != 16 || err != nil {
				continue // punctuation or poison
			}
			id := schemas.ImpressionID(r.Key)
			out[id] = append(out[id], r)
		}
	}
	return out
}

func (tr *truth) read(t *testing.T, kafka stream.Config) verdicts {
	t.Helper()
	v := verdicts{map[schemas.ImpressionID][]*eventpb.Label{}, map[place]schemas.LateReason{}, map[schemas.LateReason]uint64{}}
	for p, rs := range streamtest.Records(t, kafka, schemas.TopicLabels) {
		for _, r := range rs {
			l := new(eventpb.Label)
			if err := proto.Unmarshal(r.Value, l); err != nil {
				t.Fatal(err)
			}
			id := schemas.ImpressionID(r.Key)
			if !r.Timestamp.Equal(id.Time()) || p != stream.PartitionOf(r.Key, tr.partitions) {
				t.Errorf("label of %s at %s in partition %d", id, r.Timestamp, p)
			}
			v.labels[id] = append(v.labels[id], l)
		}
	}
	for _, rs := range streamtest.Records(t, kafka, schemas.TopicLate) {
		for _, r := range rs {
			l := new(eventpb.Late)
			if err := proto.Unmarshal(r.Value, l); err != nil {
				t.Fatal(err)
			}
			at := place{l.Topic, l.Partition, l.Offset}
			if _, twice := v.late[at]; twice {
				t.Errorf("%v is reported late twice", at)
			}
			v.late[at] = schemas.LateReason(l.Reason)
			v.count[schemas.LateReason(l.Reason)]++
		}
	}
	return v
}

// verifyAudit sums labels.v1 again and compares with audit.v1.
func (tr *truth) verifyAudit(t *testing.T, kafka stream.Config) {
	t.Helper()
	type key struct {
		partition int32
		minute    int64
	}
	type sums struct{ labels, positive, xor, sum uint64 }
	want, got := map[key]sums{}, map[key]sums{}
	for p, rs := range streamtest.Records(t, kafka, schemas.TopicLabels) {
		for _, r := range rs {
			l := new(eventpb.Label)
			if err := proto.Unmarshal(r.Value, l); err != nil {
				t.Fatal(err)
			}
			k, h := key{p, r.Timestamp.Truncate(time.Minute).UnixMilli()}, city.CH64(r.Key)
			s := want[k]
			s.labels, s.xor, s.sum = s.labels+1, s.xor^h, s.sum+h
			if l.Clicked {
				s.positive++
			}
			want[k] = s
		}
	}
	for _, rs := range streamtest.Records(t, kafka, schemas.TopicAudit) {
		for _, r := range rs {
			m := new(eventpb.AuditMinute)
			if err := proto.Unmarshal(r.Value, m); err != nil {
				t.Fatal(err)
			}
			k := key{m.Partition, m.MinuteMs}
			s := got[k]
			got[k] = sums{s.labels + m.Labels, s.positive + m.Positive, s.xor ^ m.HashXor, s.sum + m.HashSum}
		}
	}
	if d := gocmp.Diff(want, got, gocmp.AllowUnexported(key{}, sums{})); d != "" {
		t.Errorf("audit: labels -, audit +:\n%s", d)
	}
}

// String sums it up for the log.
func (tr *truth) String() string {
	return fmt.Sprintf("%d impressions, %d clicks, %d partitions", len(tr.imps), len(tr.clks), tr.partitions)
}
