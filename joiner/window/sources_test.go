package window

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestSourcesAgainstOracle: the time of an input is the smallest promise, by a slow account of the same
// rule; it survives being written into metadata and read again, and a rollback.
func TestSourcesAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{WindowMS: 1000, BucketMS: 100}
		w := New(cfg)
		held := map[string]int64{} // by source: its greatest promise
		heard := map[string]bool{}
		for range rapid.IntRange(1, 30).Draw(t, "promises") {
			p := Promise{LowMS: rapid.Int64Range(-5, 200).Draw(t, "low"), Closed: rapid.IntRange(0, 5).Draw(t, "closed") == 0}
			next, spoken := maps.Clone(held), maps.Clone(heard)
			say := func(k string) {
				if p.Closed {
					delete(next, k)
					delete(spoken, k)
				} else if !spoken[k] {
					next[k], spoken[k] = p.LowMS, true
				} else if old, ok := next[k]; !ok || p.LowMS > old {
					next[k] = p.LowMS
				}
			}
			if rapid.Bool().Draw(t, "named") {
				p.Source = rapid.SampledFrom([]string{"a", "b", "c d=,-é"}).Draw(t, "name")
				say(p.Source)
			} else {
				p.Closed = false
				p.Parts = rapid.Uint32Range(1, 6).Draw(t, "parts")
				p.Covers = slices.Compact(rapid.SliceOfN(rapid.Uint32Range(0, p.Parts-1), 0, 4).Draw(t, "covers"))
				if whole := next["whole"]; whole != int64(p.Parts) { // cut anew: nothing is known of any part
					for i := range uint32(10) {
						delete(next, fmt.Sprint(i))
						delete(spoken, fmt.Sprint(i))
					}
					for i := range p.Parts {
						next[fmt.Sprint(i)] = p.LowMS
					}
					next["whole"], spoken["whole"] = int64(p.Parts), true
				}
				for _, c := range p.Covers {
					say(fmt.Sprint(c))
				}
			}
			hash := w.Hash()
			if err := w.Punctuate(Impressions, p); err != nil {
				t.Fatal(err)
			}
			if rapid.IntRange(0, 4).Draw(t, "abort") == 0 {
				if w.Rollback(); w.Hash() != hash {
					t.Fatalf("hash %x after the abort, %x before", w.Hash(), hash)
				}
			} else {
				w.Commit()
				held, heard = next, spoken
			}
			want := int64(math.MaxInt64)
			for k, v := range held {
				switch {
				case k == "whole":
				case !heard[k]:
					want = None
				case want != None:
					want = min(want, v)
				}
			}
			if len(held) == 0 {
				want = w.MaxTime(Impressions)
			}
			if got := w.progress(Impressions); got != want {
				t.Fatalf("time %d, want %d: %s, %v", got, want, w.sources[0], held)
			}
			if again := Restore(cfg, w.Snapshot([2]int64{})); again.Hash() != w.Hash() {
				t.Fatalf("%q comes back as %q", w.sources[0], again.sources[0])
			}
		}
	})
}

// TestSourcesFitIntoMetadata: brokers keep 4096 bytes of it.
func TestSourcesFitIntoMetadata(t *testing.T) {
	w := New(Config{WindowMS: 1000, BucketMS: 100})
	const now = 1_790_000_000_000
	for in := range Input(2) {
		for i := range int64(300) {
			p := Promise{Source: fmt.Sprintf("%02d-a-long-name-of-an-instance", i), LowMS: now + i}
			if err := w.Punctuate(in, p); (err != nil) != (i >= maxNamed) || err != nil && !errors.Is(err, ErrSources) {
				t.Fatalf("name %d: %v", i, err)
			}
			if err := w.Punctuate(in, Promise{Covers: []uint32{uint32(i)}, Parts: 300, LowMS: now + 2*i}); err != nil {
				t.Fatal(err)
			}
			s := w.Snapshot([2]int64{}).Sources
			if n := len(s[0]) + len(s[1]); n > 3500 {
				t.Fatalf("%d bytes after %d promises", n, i)
			}
		}
	}
	for i := range uint32(300) {
		if err := w.Punctuate(Impressions, Promise{Covers: []uint32{i}, Parts: 300, LowMS: now + 9000}); err != nil {
			t.Fatal(err)
		}
	}
	if low := w.sources[0].low(); low < now || low > now+9000 {
		t.Errorf("time %d", low-now)
	}
	for _, p := range []Promise{{Covers: []uint32{4}, Parts: 4}, {Covers: []uint32{0}, Parts: maxParts + 1}, {Parts: 300, Closed: true}} {
		if err := w.Punctuate(Clicks, p); !errors.Is(err, ErrSources) {
			t.Errorf("%+v: %v", p, err)
		}
	}
}
