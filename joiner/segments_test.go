package joiner

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/joiner/segment"
	"ctrloop/schemas"
)

// TestRestartFromSegments: after a clean stop the state comes from the disk and nothing is read again; with a file
// damaged, gone or of another run it comes from the topics; the labels are right every time.
func TestRestartFromSegments(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		reason segment.Reason // "" for none: the segments are used
		loads  float64
	}{
		{"as left", func(*testing.T, string) {}, "", 2},
		{"deleted", func(t *testing.T, dir string) { must(t, os.RemoveAll(dir)) }, "", 0},
		{"one byte changed", func(t *testing.T, dir string) {
			for _, f := range segments(t, dir) {
				b, err := os.ReadFile(f)
				must(t, err)
				b[len(b)/2] ^= 1
				must(t, os.WriteFile(f, b, 0o600))
			}
		}, segment.ReasonCorrupt, 0},
		{"partitions swapped", func(t *testing.T, dir string) {
			a, b, tmp := filepath.Join(dir, "0"), filepath.Join(dir, "1"), filepath.Join(dir, "tmp")
			must(t, os.Rename(a, tmp))
			must(t, os.Rename(b, a))
			must(t, os.Rename(tmp, b))
		}, segment.ReasonIdentity, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := streamtest.Start(t, 2)
			cfg := testConfig(b)
			cfg.Segments = Segments{Dir: t.TempDir(), Interval: time.Hour} // written at the stop alone
			tr := newTruth(30, cfg, 2, 3000, 10*time.Minute)
			half := len(tr.imps) / 2
			streamtest.Produce(t, b.Config, append(tr.imps[:half:half], tr.clks[:len(tr.clks)/2]...)...)
			i := start(t, cfg, nil)
			before := settle(t, b.Config, i)
			i.close(t)
			if before.Total.Open == 0 {
				t.Fatal("nothing was open")
			}
			c.damage(t, cfg.Segments.Dir)
			i = start(t, cfg, func(s step) error {
				if s == stepRebuild && c.loads > 0 {
					t.Error("a record was read again")
				}
				return nil
			})
			if after := settle(t, b.Config, i); after.Total != before.Total {
				t.Errorf("ledger %+v, before the restart %+v", after.Total, before.Total)
			}
			if n := testutil.ToFloat64(i.kept.Loads); n != c.loads {
				t.Errorf("%v partitions came from the disk, want %v", n, c.loads)
			}
			if c.reason != "" && testutil.ToFloat64(i.kept.Ignored.WithLabelValues(string(c.reason))) != 2 {
				t.Errorf("not ignored for %s", c.reason)
			}
			streamtest.Produce(t, b.Config, append(tr.imps[half:], tr.clks[len(tr.clks)/2:]...)...)
			streamtest.Produce(t, b.Config, tr.punctuation(tr.endMS)...)
			tr.verify(t, b.Config, settle(t, b.Config, i))
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func segments(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*", "seg-*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no segments: %v", err)
	}
	return files
}

// TestSegmentsDisappearUnderARun: the disk goes away while windows are spilled to it. The session ends, the state comes
// from the topics, nothing is lost.
func TestSegmentsDisappearUnderARun(t *testing.T) {
	b := streamtest.Start(t, 1)
	cfg := testConfig(b)
	cfg.Segments = Segments{Dir: t.TempDir(), Interval: time.Millisecond}
	cfg.MemoryLimit = 1
	tr := newTruth(31, cfg, 1, 3000, 10*time.Minute)
	half := len(tr.imps) / 2
	streamtest.Produce(t, b.Config, append(tr.imps[:half:half], tr.clks[:len(tr.clks)/2]...)...)
	i := start(t, cfg, nil)
	settle(t, b.Config, i)
	if testutil.ToFloat64(i.kept.Spills) == 0 {
		t.Fatal("nothing was spilled")
	}
	for _, f := range segments(t, cfg.Segments.Dir) {
		must(t, os.Truncate(f, 0))
	}
	streamtest.Produce(t, b.Config, append(tr.imps[half:], tr.clks[len(tr.clks)/2:]...)...)
	streamtest.Produce(t, b.Config, tr.punctuation(tr.endMS)...)
	tr.verify(t, b.Config, settle(t, b.Config, i))
	if testutil.ToFloat64(i.metrics.sessions) == 0 {
		t.Error("no session ended, so nothing was read from the disk")
	}
}

// TestSegmentsOfReplacedRecords: the broker no longer knows the leader epoch of what the segments were made of.
func TestSegmentsOfReplacedRecords(t *testing.T) {
	b := streamtest.Start(t, 1)
	cfg := testConfig(b)
	cfg.Segments = Segments{Dir: t.TempDir(), Interval: time.Hour}
	tr := newTruth(32, cfg, 1, 500, 3*time.Minute)
	streamtest.Produce(t, b.Config, append(tr.imps, tr.clks...)...)
	end, err := stream.EpochEnd(t.Context(), b.Config, schemas.TopicImpressions, 0, 0)
	if err != nil || end < int64(len(tr.imps)) {
		t.Errorf("epoch 0 ends at %d, %v", end, err)
	}
	i := start(t, cfg, nil)
	settle(t, b.Config, i)
	i.close(t)
	path := filepath.Join(cfg.Segments.Dir, "0", "manifest")
	m, err := os.ReadFile(path)
	must(t, err)
	body := strings.Replace(string(m[:len(m)-4]), `"leader_epochs":[0,0]`, `"leader_epochs":[7,7]`, 1)
	sum := crc32.Checksum([]byte(body), crc32.MakeTable(crc32.Castagnoli))
	must(t, os.WriteFile(path, binary.LittleEndian.AppendUint32([]byte(body), sum), 0o600))
	i = start(t, cfg, nil)
	settle(t, b.Config, i)
	if n := testutil.ToFloat64(i.kept.Ignored.WithLabelValues(string(segment.ReasonEpoch))); n != 1 {
		t.Errorf("ignored %v times for their epoch", n)
	}
}

func TestMemoryLimitNeedsSegments(t *testing.T) {
	cfg := Default()
	cfg.MemoryLimit, cfg.Segments.Interval = 1<<30, 0
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "memory_limit: 1073741824, but segments.interval is 0") {
		t.Errorf("%v", err)
	}
}
