package window

import (
	"bytes"
	"fmt"
	"math"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

func drawEvent(t *rapid.T, id schemas.ImpressionID) *eventpb.Impression {
	text := func(name string) string {
		return rapid.OneOf(rapid.SampledFrom([]string{"", "a", "p-1", "home/lamps", "control"}), rapid.StringN(0, 20, 300)).Draw(t, name)
	}
	return &eventpb.Impression{
		Id: id[:], RequestId: rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "request"), User: rapid.Uint64().Draw(t, "user"),
		Product: text("product"), Creative: text("creative"), Placement: text("placement"), Position: rapid.Uint32().Draw(t, "position"),
		Campaign: text("campaign"), Category: text("category"), Experiment: text("experiment"), Variant: text("variant"),
		ModelVersion: text(
			"model",
		), Policy: text("policy"), Propensity: rapid.SampledFrom([]float64{0, 1, 0.125, math.NaN(), -3}).Draw(t, "propensity"),
		ArmShare: rapid.SampledFrom([]float64{0, 0, 1, 0.1, math.Inf(1)}).Draw(t, "arm share"),
		Schema:   rapid.Uint32().Draw(t, "schema"), Bot: rapid.Bool().Draw(t, "bot"),
	}
}

// spoil makes wire forms that no encoder of ours writes: unknown fields at any place, fields out of order and repeated,
// numbers longer than they need be, an id that is not the record's, bytes that are no message.
func spoil(t *rapid.T, raw []byte) []byte {
	var fields [][]byte
	for rest := raw; len(rest) > 0; {
		_, _, n := protowire.ConsumeField(rest)
		fields = append(fields, rest[:n])
		rest = rest[n:]
	}
	for range rapid.IntRange(0, 3).Draw(t, "spoils") {
		at := rapid.IntRange(0, len(fields)).Draw(t, "where")
		var f []byte
		switch rapid.IntRange(0, 6).Draw(t, "how") {
		case 0:
			num := protowire.Number(rapid.SampledFrom([]int{1, 2, 3, 5, 7, 14, 15, 16, 17, 100, 5000}).Draw(t, "number"))
			switch rapid.IntRange(0, 4).Draw(t, "type") {
			case 0:
				f = protowire.AppendVarint(protowire.AppendTag(f, num, protowire.VarintType), rapid.Uint64().Draw(t, "varint"))
			case 1:
				f = protowire.AppendFixed64(protowire.AppendTag(f, num, protowire.Fixed64Type), 7)
			case 2:
				f = protowire.AppendFixed32(protowire.AppendTag(f, num, protowire.Fixed32Type), 7)
			case 3:
				f = protowire.AppendBytes(protowire.AppendTag(f, num, protowire.BytesType), rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "bytes"))
			case 4:
				f = protowire.AppendTag(protowire.AppendTag(f, num, protowire.StartGroupType), num, protowire.EndGroupType)
			}
		case 1:
			f = []byte{rapid.SampledFrom([]byte{0x92, 0x99, 0xf1}).Draw(t, "long tag"), 0, 1, 2, 3, 4, 5, 6, 7, 8, 9}
		case 2:
			f = []byte{0x12, 0x82, 0, 1, 2} // a length in two bytes
		case 3:
			f = rapid.SliceOfN(rapid.Byte(), 0, 30).Draw(t, "noise")
		case 4:
			if len(fields) > 0 {
				f = fields[rapid.IntRange(0, len(fields)-1).Draw(t, "again")]
			}
		case 5:
			fields = fields[at:]
			continue
		case 6:
			f = bytes.Repeat([]byte{0x92, 0xff, 0xff}, 3)
		}
		fields = append(fields[:at:at], append([][]byte{f}, fields[at:]...)...)
	}
	return bytes.Join(fields, nil)
}

// TestRecordsKeepEverything: what goes into a record comes out, byte for byte, whatever it is.
func TestRecordsKeepEverything(t *testing.T) {
	plain, short := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		d := newDictionary(rapid.Uint64().Draw(t, "seed"))
		var arena []byte
		var want [][]byte
		var ids []schemas.ImpressionID
		const start = 1_790_000_000_000
		for range rapid.IntRange(1, 5).Draw(t, "records") {
			at := rapid.Int64Range(0, maxBucketMS-1).Draw(t, "at")
			id := schemas.NewImpressionID(time.UnixMilli(start+at), [10]byte(rapid.SliceOfN(rapid.Byte(), 10, 10).Draw(t, "random")))
			if rapid.Bool().Draw(t, "ULID") {
				id[6], id[8] = rapid.Byte().Draw(t, "6"), rapid.Byte().Draw(t, "8")
			}
			raw, err := proto.MarshalOptions{Deterministic: true, AllowPartial: true}.Marshal(drawEvent(t, id))
			if err != nil {
				t.Skip("not UTF-8")
			}
			if rapid.Bool().Draw(t, "spoil") {
				raw = spoil(t, raw)
			}
			var p Parts
			p.CutAny(raw, id)
			if p.mask&hasRest == 0 {
				plain++
			}
			if checkCut(t, d, raw) {
				short++
			}
			var e eventpb.Impression
			if p.mask&hasRest == 0 && proto.Unmarshal(raw, &e) == nil && !bytes.Contains(raw, []byte{9<<3 | 2, 0}) {
				rec := d.appendRecord(nil, recordIDOf(id, at), &p)
				if got := string(d.categoryOf(rec)); got != e.Category && bytes.Count(raw, []byte(e.Category)) == 1 {
					t.Fatalf("category %q, want %q", got, e.Category)
				}
				d.releaseRecord(rec)
			}
			arena = d.appendRecord(arena, recordIDOf(id, at), &p)
			want, ids = append(want, raw), append(ids, id)
		}
		off := 0
		for i, raw := range want {
			rec := arena[off:]
			if id := idAt(rec).of(start); id != ids[i] {
				t.Fatalf("record %d is of %s, want %s", i, id, ids[i])
			}
			if got := d.appendRaw(nil, rec, &ids[i]); !bytes.Equal(got, raw) {
				t.Fatalf("record %d:\n got %x\nwant %x", i, got, raw)
			}
			off += recordSize(rec)
		}
		if off != len(arena) {
			t.Fatalf("records end at %d of %d", off, len(arena))
		}
		for cut := range off {
			var x walk
			x.read(arena[:cut]) // must not panic
		}
		for off := 0; off < len(arena); {
			off += d.releaseRecord(arena[off:])
		}
		if d.live != 0 || len(d.free) != len(d.entries) {
			t.Fatalf("%d entries live without a record", d.live)
		}
	})
	if plain == 0 || short == 0 {
		t.Errorf("%d impressions fitted the expected order, %d the usual form", plain, short)
	}
}

// checkCut says whether raw has the usual form, and holds Cut against the library and the long way.
func checkCut(t *rapid.T, d *dictionary, raw []byte) bool {
	var fast, slow Parts
	id, ok := fast.Cut(raw)
	if !ok {
		return false
	}
	for rest := raw; len(rest) > 0; {
		_, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			t.Fatalf("%x is malformed and has the usual form", raw)
		}
		rest = rest[n:]
	}
	slow.CutAny(raw, id)
	a, b := d.appendRecord(nil, recordID{}, &fast), d.appendRecord(nil, recordID{}, &slow)
	if !bytes.Equal(a, b) {
		t.Fatalf("%x: record %x the short way, %x the long way", raw, a, b)
	}
	d.releaseRecord(a)
	d.releaseRecord(b)
	return true
}

// TestRecordIsSmall: what a full event costs once its names are known.
func TestRecordIsSmall(t *testing.T) {
	d := newDictionary(1)
	var arena []byte
	for i := range 1000 {
		id := schemas.NewImpressionID(time.UnixMilli(1_790_000_000_000), [10]byte{byte(i), byte(i >> 8)})
		raw, err := proto.Marshal(fullEvent(id, i))
		if err != nil {
			t.Fatal(err)
		}
		var p Parts
		p.CutAny(raw, id)
		if p.mask != hasID|hasRequest|hasUser|hasPropensity {
			t.Fatalf("mask %b", p.mask)
		}
		arena = d.appendRecord(arena, recordIDOf(id, 0), &p)
	}
	if n := len(arena) / 1000; n > 64 {
		t.Errorf("%d bytes a record, want at most 64", n)
	}
}

// fullEvent has every field, with a request id of 16 bytes.
func fullEvent(id schemas.ImpressionID, i int) *eventpb.Impression {
	return &eventpb.Impression{
		Id: id[:], RequestId: id[:], User: mix(uint64(i + 1)), Product: fmt.Sprintf("p-%d", i%8000/4), Creative: fmt.Sprintf("c-%06d", i%8000),
		Placement: "feed",
		Position: uint32(
			1 + i%8,
		), Campaign: fmt.Sprintf("spring-%d", i%20), Category: fmt.Sprintf("home/lamps-%d", i%40), Experiment: "e7",
		Variant:      []string{"control", "treatment"}[i%2],
		ModelVersion: "pm-12", Policy: "s-33", Propensity: 1 / float64(1+i), Schema: 1,
	}
}

// TestDictionaryForgets: names that come and go, thousands at a time for ever, take the memory of those alive.
func TestDictionaryForgets(t *testing.T) {
	cfg := Config{WindowMS: 10_000, BucketMS: 1000, Seed: 3}
	w := New(cfg)
	const perSecond = 300
	var settled int
	for s := range int64(300) {
		for i := range perSecond {
			at := 1_790_000_000_000 + s*1000 + int64(i)
			id := schemas.NewImpressionID(time.UnixMilli(at), [10]byte{byte(i), byte(i >> 8)})
			e := fullEvent(id, i)
			e.Creative, e.Campaign = fmt.Sprintf("never-seen-before-%d-%d", s, i), fmt.Sprintf("of-the-second-%d", s)
			raw, err := proto.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Impression(raw, id, s*perSecond+int64(i)); err != nil {
				t.Fatal(err)
			}
			if err := w.Punctuate(Clicks, Promise{LowMS: at}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Advance(0); err != nil {
			t.Fatal(err)
		}
		w.Commit()
		if s == 150 { // numbers have their length for the rest of the test
			settled = w.names.memory()
		}
	}
	if alive := w.Known(); w.names.live > 2*alive || alive > 13*perSecond {
		t.Errorf("%d names for %d impressions", w.names.live, alive)
	}
	if m := w.names.memory(); m > settled {
		t.Errorf("dictionary grew from %d to %d bytes with the same number of impressions open", settled, m)
	}
}

// TestDictionaryIsBounded: beyond its bound values stay in their records.
func TestDictionaryIsBounded(t *testing.T) {
	d := newDictionary(1)
	d.live = maxEntries - 1
	d.index(64)
	d.live = maxEntries - 1
	d.slots = make([]uint64, 2*maxEntries)
	a, b := d.take(0, []byte("last")), d.take(0, []byte("one too many"))
	if a < refFirst || b != refInline || d.take(1, []byte("last")) != a || d.take(0, make([]byte, maxChunk+1)) != refInline {
		t.Errorf("references %d and %d", a, b)
	}
}

// counts holds the dictionary's counts against the records in the window. It is for tests.
func (w *Window) counts() error {
	want := map[reference]uint32{}
	tally := func(arena []byte) {
		for off := 0; off < len(arena); {
			var x walk
			x.must(arena[off:])
			for _, r := range x.ref {
				if r >= refFirst {
					want[r]++
				}
			}
			off += x.size
		}
	}
	for _, b := range w.order {
		tally(b.arena)
		if b.base != nil {
			data, err := b.base.load()
			if err != nil {
				return err
			}
			tally(data)
		}
	}
	live := 0
	for i, e := range w.names.entries {
		if e.count > 0 {
			live++
		}
		if r := reference(i) + refFirst; e.count != want[r] {
			return fmt.Errorf("%q is counted %d times, there are %d records with it", w.names.bytes(r), e.count, want[r])
		}
	}
	if live != w.names.live {
		return fmt.Errorf("%d live entries, the dictionary says %d", live, w.names.live)
	}
	return nil
}
