package joiner

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"ctrloop/joiner/window"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

func TestCodecMatchesProto(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "raw")
		l := labelOf(t, raw)
		l.Kind, l.Clicked = eventpb.LabelKind(rapid.Int32Range(0, 4).Draw(t, "kind")), rapid.Bool().Draw(t, "clicked")
		l.DelayMS, l.Clicks, l.Version = rapid.Int64().Draw(t, "delay"), rapid.Uint32().Draw(t, "clicks"), rapid.Uint32().Draw(t, "version")
		l.Weight = float64(rapid.IntRange(1, 1000).Draw(t, "weight"))
		l.WatermarkMS = rapid.SampledFrom([]int64{window.None, 0, 1, 1_790_000_000_000, -5}).Draw(t, "watermark")
		l.Bot = rapid.Bool().Draw(t, "bot")
		want := &eventpb.Label{
			Impression: raw, Kind: l.Kind, Clicked: l.Clicked, ClickDelayMs: l.DelayMS, Clicks: l.Clicks,
			WatermarkMs: knownTime(l.WatermarkMS), Version: l.Version, Weight: l.Weight, Suspect: rapid.Bool().Draw(t, "suspect"), Bot: l.Bot,
		}
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if got := appendLabel(nil, &l, want.Suspect); string(got) != string(b) {
			t.Fatalf("%+v:\n got %x\nwant %x", l, got, b)
		}
	})
}

// labelOf is a label on an impression of these bytes, out of a window.
func labelOf(t interface{ Fatal(...any) }, raw []byte) window.Label {
	w := window.New(window.Config{WindowMS: 1000, BucketMS: 1000})
	id := schemas.ImpressionID{15: 1}
	if err := errors.Join(w.Impression(raw, id, 0), w.Click(nil, id, 1, 0)); err != nil {
		t.Fatal(err)
	}
	return w.Labels[0]
}

func TestDecode(t *testing.T) {
	id := schemas.NewImpressionID(time.UnixMilli(1_790_000_000_123), [10]byte{1, 2, 3})
	imp, err := proto.Marshal(&eventpb.Impression{Id: id[:], Product: "p", Propensity: 0.5, User: 7, Schema: 1})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decodeImpression(imp); err != nil || got != id {
		t.Errorf("impression: %v, %v", got, err)
	}
	clk, err := proto.Marshal(&eventpb.Click{ImpressionId: id[:], Id: []byte("c"), TimeMs: 1_790_000_001_000, Schema: 1})
	if err != nil {
		t.Fatal(err)
	}
	if got, at, err := decodeClick(clk); err != nil || got != id || at != 1_790_000_001_000 {
		t.Errorf("click: %v at %d, %v", got, at, err)
	}
	zero, err := proto.Marshal(&eventpb.Impression{Id: make([]byte, 16)})
	if err != nil {
		t.Fatal(err)
	}
	timeless, err := proto.Marshal(&eventpb.Click{ImpressionId: id[:]})
	if err != nil {
		t.Fatal(err)
	}
	_, _, clickErr := decodeClick(timeless)
	for _, c := range []struct {
		name string
		err  error
		want schemas.DeadLetterReason
	}{
		{"truncated", second(decodeImpression(imp[:len(imp)-1])), schemas.DeadMalformed},
		{"empty", second(decodeImpression(nil)), schemas.DeadBadID},
		{"zero id", second(decodeImpression(zero)), schemas.DeadBadID},
		{"short id", second(decodeImpression([]byte{10, 1, 1})), schemas.DeadBadID},
		{"click without time", clickErr, schemas.DeadBadTime},
	} {
		if c.err == nil || deadReason(c.err) != c.want {
			t.Errorf("%s: %v, want reason %s", c.name, c.err, c.want)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestMetadataRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m metadata
		for _, v := range m.ints() {
			*v = rapid.OneOf(rapid.Int64(), rapid.Just(int64(window.None))).Draw(t, "int")
		}
		for _, v := range m.counts() {
			*v = rapid.Uint64().Draw(t, "count")
		}
		for in := range m.Sources {
			m.Sources[in] = rapid.SampledFrom([]string{"", "0-3=17,4-4=-5", "name=12"}).Draw(t, "sources")
		}
		m.Hash = rapid.Uint64().Draw(t, "hash")
		got, err := parseMetadata(m.String())
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(m, got); d != "" {
			t.Fatal(d)
		}
		if ms, ok := WatermarkOf(m.String()); ok != (m.WatermarkMS != window.None) || ms != m.WatermarkMS {
			t.Fatalf("watermark %d, %v", ms, ok)
		}
		if n := len(m.String()); n > 1000 {
			t.Fatalf("%d bytes of metadata: brokers keep 4096 by default", n)
		}
	})
	for _, s := range []string{"", "j9 1", "j3", "j3 x", "j2 1 2", "client-member-id-0123"} {
		if _, err := parseMetadata(s); !errors.Is(err, errMetadata) {
			t.Errorf("%q: %v", s, err)
		}
		if ms, ok := WatermarkOf(s); ok {
			t.Errorf("%q has watermark %d", s, ms)
		}
	}
}
