package evidence

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"ctrloop/schemas/eventpb"
)

// What is written by hand is what the library writes, and comes back.
func TestCellsComeBack(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	number := func() int64 {
		return []int64{0, 1, -1, r.Int64(), -r.Int64(), math.MaxInt64, math.MinInt64}[r.IntN(7)]
	}
	sums := func() Sums { return Sums{number(), number(), number(), number(), number(), number(), number()} }
	for range 2000 {
		v := Value{Category: []string{"", "a/b", "\xff"}[r.IntN(3)], Trusted: sums(), Suspect: sums()}
		v.FirstMS, v.LastMS = r.Int64N(1<<41), r.Int64N(1<<41)
		for m := range uint8(60) {
			if r.IntN(20) == 0 {
				v.Early = append(v.Early, Early{m, sums(), sums()})
			}
		}
		b := v.encode()
		got, err := decodeValue(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(v, got); d != "" {
			t.Fatal(d)
		}
		var m eventpb.EvidenceCell
		if err := proto.Unmarshal(b, &m); err != nil || len(m.ProtoReflect().GetUnknown()) > 0 || proto.Size(&m) != len(b) {
			t.Fatalf("%v, %d unknown bytes, %d of %d bytes", err, len(m.ProtoReflect().GetUnknown()), proto.Size(&m), len(b))
		}
	}
	if digest([]byte("ab"), []byte("c")) == digest([]byte("a"), []byte("bc")) {
		t.Error("the border between key and value is not in the digest")
	}
}
