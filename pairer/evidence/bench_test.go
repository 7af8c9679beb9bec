package evidence

import (
	"fmt"
	"testing"
	"time"

	"ctrloop/pairer/evidence/evidencetest"
)

// BenchmarkFold folds the labels of 50,000 impressions over and over, in transactions of 50,000 labels, and makes their records: of
// some 70 cells, and of some 25,000.
func BenchmarkFold(b *testing.B) {
	for name, creatives := range map[string]int{"few cells": 0, "many cells": 10_000} {
		b.Run(name, func(b *testing.B) { benchmarkFold(b, creatives) })
	}
}

func benchmarkFold(b *testing.B, creatives int) {
	labels := evidencetest.History(1, testConfig.times(), 1, 50_000, time.Hour)
	values := make([][]byte, 0, len(labels))
	for i, l := range labels {
		if creatives > 0 {
			l.Seen.Creative = fmt.Sprint("creative-", i%creatives)
		}
		l.WatermarkMS = labels[len(labels)-1].WatermarkMS
		values = append(values, l.Encode())
	}
	p := New(testConfig, 0)
	b.ReportAllocs()
	b.ResetTimer()
	records := 0
	for i := range b.N {
		if err := p.Add(int64(i), values[i%len(values)]); err != nil {
			b.Fatal(err)
		}
		if i%50_000 == 49_999 {
			p.Close(func([]byte, []byte) { records++ })
			p.Commit(int64(records))
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "labels/s")
}
