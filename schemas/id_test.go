package schemas

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"
)

func TestImpressionIDCarriesItsTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ms := rapid.Int64Range(0, 1<<48-1).Draw(t, "ms")
		var random [10]byte
		copy(random[:], rapid.SliceOfN(rapid.Byte(), 10, 10).Draw(t, "random"))
		id := NewImpressionID(time.UnixMilli(ms), random)
		if id.UnixMilli() != ms || id.Time().UnixMilli() != ms {
			t.Fatalf("time %d became %d", ms, id.UnixMilli())
		}
		// The text is the canonical one of RFC 9562, and every spelling of it reads back.
		if want := uuid.UUID(id).String(); id.String() != want {
			t.Fatalf("text %s, want %s", id, want)
		}
		if uuid.UUID(id).Version() != 7 || uuid.UUID(id).Variant() != uuid.RFC4122 {
			t.Fatalf("%s is not a UUIDv7", id)
		}
		for _, s := range []string{id.String(), strings.ToUpper(id.String()), strings.ReplaceAll(id.String(), "-", "")} {
			if back, err := ParseImpressionID(s); err != nil || back != id {
				t.Fatalf("%s reads as %s, %v", s, back, err)
			}
		}
		if back, err := ImpressionIDFromBytes(id[:]); err != nil || back != id {
			t.Fatal(back, err)
		}
		var hi, lo uint64
		for i, b := range id {
			if i < 8 {
				hi = hi<<8 | uint64(b)
			} else {
				lo = lo<<8 | uint64(b)
			}
		}
		if id.Hi() != hi || id.Lo() != lo {
			t.Fatal("halves")
		}
	})
}

// ulid spells 128 bits as the ULID specification does.
func ulid(id [16]byte) string {
	const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	var out [26]byte
	for i := range out {
		v := 0
		for bit := range 5 {
			v <<= 1
			if at := i*5 + bit - 2; at >= 0 && id[at/8]>>(7-at%8)&1 == 1 { // 130 bits hold 128
				v |= 1
			}
		}
		out[i] = alphabet[v]
	}
	return string(out[:])
}

func TestULIDIsTheSameEvent(t *testing.T) {
	if id, err := ParseImpressionID("01ARZ3NDEKTSV4RRFFQ69G5FAV"); err != nil || id.UnixMilli() != 1469922850259 { // of the specification
		t.Fatal(id.UnixMilli(), err)
	}
	rapid.Check(t, func(t *rapid.T) {
		var raw [16]byte
		copy(raw[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "raw"))
		want := ImpressionID(raw)
		want[6] = want[6]&0x0f | 0x70
		want[8] = want[8]&0x3f | 0x80
		for _, s := range []string{ulid(raw), strings.ToLower(ulid(raw))} {
			if got, err := ParseImpressionID(s); err != nil || got != want {
				t.Fatalf("%s reads as %s, want %s (%v)", s, got, want, err)
			}
		}
	})
}

func TestWhatIsNoID(t *testing.T) {
	for _, s := range []string{
		"", "x", strings.Repeat("0", 36), strings.Repeat("z", 32), strings.Repeat("-", 36), strings.Repeat("U", 26),
		"3f2504e0-4f89-41d3-9a0c-0305e82c3301",  // version 4
		"018bcfe5-6800-7000-c000-000000000001",  // another variant
		"018bcfe56-800-7000-8000-000000000001",  // a dash in the wrong place
		"018bcfe5-6800-7000-8000-00000000000g",  // no digit
		"018bcfe5-6800-7000-8000-0000000000011", // too long
		"81ARZ3NDEKTSV4RRFFQ69G5FAV",            // beyond 128 bits
	} {
		if id, err := ParseImpressionID(s); !errors.Is(err, ErrBadID) {
			t.Errorf("%q reads as %s, %v", s, id, err)
		}
	}
	for _, b := range [][]byte{nil, make([]byte, 16), make([]byte, 15), make([]byte, 17)} {
		if _, err := ImpressionIDFromBytes(b); !errors.Is(err, ErrBadID) {
			t.Errorf("%x is an id", b)
		}
	}
}

func FuzzParseImpressionID(f *testing.F) {
	f.Add("018bcfe5-6800-7000-8000-000000000001")
	f.Add("01ARZ3NDEKTSV4RRFFQ69G5FAV")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseImpressionID(s)
		if err != nil {
			return
		}
		if again, err := ParseImpressionID(id.String()); err != nil || again != id {
			t.Fatalf("%q: %s reads back as %s, %v", s, id, again, err)
		}
	})
}
