package sink

import (
	"math/rand/v2"
	"testing"

	"ctrloop/internal/warehouse"
)

// BenchmarkDecodeLabel is a record of labels.v1 to a row of a block.
func BenchmarkDecodeLabel(b *testing.B) {
	records, _ := labels(rand.New(rand.NewPCG(3, 3)), 1, 10_000)
	block := &warehouse.LabelBlock{}
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		var row warehouse.Label
		if err := decodeLabel(records[n%len(records)].Value, &row, block); err != nil {
			b.Fatal(err)
		}
		n++
	}
}
