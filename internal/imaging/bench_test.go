package imaging

import (
	"fmt"
	"io"
	"testing"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging/grammar"
)

// BenchmarkBackground draws each scene at the sizes in use: 128 for training, 256 served, 512 for show.
func BenchmarkBackground(b *testing.B) {
	for _, px := range []int{128, 256, 512} {
		b.Run(fmt.Sprint("all/", px), func(b *testing.B) {
			for i := range b.N {
				Background(grammar.FromIndex(i*7919%grammar.NumDescriptions), uint64(i), px)
			}
		})
	}
	for s := range grammar.NumScenes {
		b.Run(fmt.Sprint(grammar.Scene(s), "/128"), func(b *testing.B) {
			for i := range b.N {
				Background(
					Description{Scene: grammar.Scene(s), Palette: grammar.Palette(i % 10), Light: grammar.Light(i % 5), Prop: grammar.NoProps},
					uint64(i),
					128,
				)
			}
		})
	}
}

// BenchmarkServed is the whole way of a served creative: draw, paste, encode at 256 px.
func BenchmarkServed(b *testing.B) {
	products := catalogue.Embedded().Products()
	for i := range b.N {
		im := RenderDescription(products[i%len(products)], grammar.FromIndex(i*7919%grammar.NumDescriptions), uint64(i), 256)
		if err := EncodePNG(io.Discard, im); err != nil {
			b.Fatal(err)
		}
	}
}
