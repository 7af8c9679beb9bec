package sink

import (
	"strings"
	"testing"
	"time"

	"ctrloop/internal/warehouse"
)

// Many partitions under light load are few blocks: the engine merges what every block makes.
func TestManyPartitionsAreFewBlocks(t *testing.T) {
	for _, tc := range []struct {
		partitions, least, most int // blocks in a minute
	}{{4, 200, 4 * 60}, {256, 800, maxBlocksPerSecond*60 + 256}} {
		var log strings.Builder
		s, _ := supervised(t, &log)
		w := s.Session(nil, "")
		for p := range tc.partitions {
			w.parts[int32(p)] = &part{}
		}
		blocks := 0
		start := time.Unix(1e9, 0)
		for tick := range 600 { // a minute in steps of 100 ms, with a label of each partition every second
			now := start.Add(time.Duration(tick) * 100 * time.Millisecond)
			for _, p := range w.parts {
				if tick%10 == 0 {
					if len(p.block.Rows) == 0 {
						p.first = now
					}
					p.group = now
					p.block.Rows = append(p.block.Rows, warehouse.Label{WatermarkMS: int64(tick)})
				}
			}
			for _, b := range w.due(now) {
				blocks++
				b.rows.Drop(b.n)
				w.parts[b.partition].first = now
			}
		}
		if blocks < tc.least || blocks > tc.most {
			t.Errorf("%d partitions: %d blocks in a minute, want %d to %d", tc.partitions, blocks, tc.least, tc.most)
		}
	}
}
