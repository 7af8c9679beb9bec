package eventpb

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
)

// TestTags holds the tags that are written by hand against the generated code, in the order of the fields.
func TestTags(t *testing.T) {
	for _, c := range []struct {
		message proto.Message
		tags    []uint64
	}{
		{&Impression{}, []uint64{
			ImpressionID, ImpressionRequestID, ImpressionUser, ImpressionProduct, ImpressionCreative, ImpressionPlacement,
			ImpressionPosition, ImpressionCampaign, ImpressionCategory, ImpressionExperiment, ImpressionVariant,
			ImpressionModelVersion, ImpressionPolicy, ImpressionPropensity, ImpressionSchema, ImpressionBot,
			ImpressionArmShare,
		}},
		{&Click{}, []uint64{ClickImpressionID, ClickID, ClickTime, ClickSchema, ClickBot}},
		{&Label{}, []uint64{
			LabelImpression, LabelVerdict, LabelClicked, LabelClickDelay, LabelClicks, LabelWatermark, LabelVersion, LabelWeight,
			LabelSuspect, LabelBot,
		}},
	} {
		fields := c.message.ProtoReflect().Descriptor().Fields()
		var want []uint64
		for i := range fields.Len() {
			f := fields.Get(i)
			want = append(want, protowire.EncodeTag(f.Number(), wireType(t, f)))
		}
		if d := cmp.Diff(want, c.tags); d != "" {
			t.Errorf("tags of %T (-event.proto +ours):\n%s", c.message, d)
		}
	}
}

func wireType(t *testing.T, f protoreflect.FieldDescriptor) protowire.Type {
	switch f.Kind() {
	case protoreflect.BytesKind, protoreflect.StringKind:
		return protowire.BytesType
	case protoreflect.Fixed64Kind, protoreflect.DoubleKind:
		return protowire.Fixed64Type
	case protoreflect.Uint32Kind, protoreflect.Int64Kind, protoreflect.BoolKind, protoreflect.EnumKind:
		return protowire.VarintType
	default:
		t.Fatalf("%s has kind %s, which this test does not know", f.Name(), f.Kind())
		return 0
	}
}

// FuzzRead holds the reader by hand against the library, for all three messages: what both take is the same, and they differ
// only where ours says that they do.
func FuzzRead(f *testing.F) {
	for _, m := range samples() {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])
		f.Add(append(b, b...))
		f.Add(append(b, 0x8a, 0x01, 0x01, 'x'))     // a field 17
		f.Add(append(b, 0x08, 0x01))                // field 1 as a number
		f.Add(append(b, 0x98, 0x80, 0x00, 0x05))    // field 3 as a number, its tag longer than need be
		f.Add(append(b, 0x8b, 0x01, 0x8c, 0x01))    // field 17 as a group
		f.Add(append(b, 0x0b, 0x0c))                // field 1 as a group
		f.Add(append(b, 0x12, 0xff, 0xff, 0xff, 7)) // a length beyond the end
		f.Add(append(b, 0x20, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var imp ImpressionView
		ours := imp.Read(b)
		check(t, b, ours, &Impression{}, &Impression{
			Id: imp.ID, RequestId: imp.RequestID, User: imp.User, Product: string(imp.Product), Creative: string(imp.Creative),
			Placement: string(imp.Placement), Position: imp.Position, Campaign: string(imp.Campaign), Category: string(imp.Category),
			Experiment: string(imp.Experiment), Variant: string(imp.Variant), ModelVersion: string(imp.ModelVersion),
			Policy: string(imp.Policy), Propensity: imp.Propensity, Schema: imp.Schema, Bot: imp.Bot, ArmShare: imp.ArmShare,
		}, imp.Canonical)

		var clk ClickView
		ours = clk.Read(b)
		check(t, b, ours, &Click{}, &Click{ImpressionId: clk.ImpressionID, Id: clk.ID, TimeMs: clk.TimeMS, Schema: clk.Schema, Bot: clk.Bot},
			clk.Canonical)

		var l LabelView
		ours = l.Read(b)
		check(t, b, ours, &Label{}, &Label{
			Impression: l.Impression, Kind: l.Kind, Clicked: l.Clicked, ClickDelayMs: l.ClickDelayMS, Clicks: l.Clicks,
			WatermarkMs: l.WatermarkMS, Version: l.Version, Weight: l.Weight, Suspect: l.Suspect, Bot: l.Bot,
		}, false)
	})
}

// check compares one reading: ours is the error of our reader, got what it read, theirs an empty message for the library.
func check(t *testing.T, b []byte, ours error, theirs, got proto.Message, canonical bool) {
	err := proto.Unmarshal(b, theirs)
	switch {
	case ours != nil && !errors.Is(ours, ErrWire):
		t.Fatalf("%x: %v is not ErrWire", b, ours)
	case ours != nil && err == nil && !foreign(theirs):
		t.Fatalf("%x: ours says %v, the library reads %v", b, ours, theirs)
	case ours == nil && err != nil && strings.Contains(err.Error(), "UTF-8"):
		return // names are checked by those who take them in
	case ours == nil && err != nil:
		t.Fatalf("%x: ours reads it, the library says %v", b, err)
	case ours != nil || err != nil:
		return
	}
	unknown := len(theirs.ProtoReflect().GetUnknown()) > 0
	if canonical && unknown {
		t.Fatalf("%x: canonical, with unknown fields", b)
	}
	theirs.ProtoReflect().SetUnknown(nil)
	if d := cmp.Diff(theirs, got, protocmp.Transform(), cmp.Comparer(sameFloat)); d != "" {
		t.Fatalf("%x (-library +ours):\n%s", b, d)
	}
}

// sameFloat takes NaN for itself.
func sameFloat(a, b float64) bool { return math.Float64bits(a) == math.Float64bits(b) }

// foreign says whether the library has put a known number aside, because its wire type is another.
func foreign(m proto.Message) bool {
	fields := m.ProtoReflect().Descriptor().Fields()
	for rest := []byte(m.ProtoReflect().GetUnknown()); len(rest) > 0; {
		num, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			return false
		}
		if fields.ByNumber(num) != nil {
			return true
		}
		rest = rest[n:]
	}
	return false
}

func samples() []proto.Message {
	id := []byte("0123456789abcdef")
	return []proto.Message{
		&Impression{
			Id: id, RequestId: []byte("r"), User: 7, Product: "p", Creative: "c", Placement: "feed", Position: 300, Campaign: "spring",
			Category: "home/lamps", Experiment: "e7", Variant: "treatment", ModelVersion: "pm-12", Policy: "s-33", Propensity: 0.125,
			Schema: 1, Bot: true, ArmShare: 0.25,
		},
		&Click{ImpressionId: id, Id: []byte("k"), TimeMs: 1_790_000_000_000, Schema: 1, Bot: true},
		&Label{Impression: id, Kind: LabelKind_LABEL_KIND_POSITIVE, Clicked: true, ClickDelayMs: 5, Clicks: 1,
			WatermarkMs: 9, Version: 1, Weight: 1, Suspect: true, Bot: true},
	}
}

// TestReadAllocatesNothing: it runs for every event and every label.
func TestReadAllocatesNothing(t *testing.T) {
	var imp ImpressionView
	var clk ClickView
	var l LabelView
	for i, read := range []func([]byte) error{imp.Read, clk.Read, l.Read} {
		b, err := proto.Marshal(samples()[i])
		if err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(100, func() {
			if err := read(b); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%T: %v allocations", samples()[i], n)
		}
	}
}

// TestSkipShort: it is the short way over one field.
func TestSkipShort(t *testing.T) {
	for _, c := range []struct {
		b    string
		want int
	}{
		{"\x22\x02ab", 4}, {"\x22\x00", 2}, {"\x22\x05ab", 7}, {"\x22", 0}, {"", 0}, {"\x2a\x01a", 0}, {"\x22\x80\x01", 0},
	} {
		if got := SkipShort([]byte(c.b), 0, byte(ImpressionProduct)); got != c.want {
			t.Errorf("%q: %d, want %d", c.b, got, c.want)
		}
	}
}
