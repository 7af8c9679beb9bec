package columnar

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"
)

// A Parquet file holds the rows in their order, in more than one group, with the types and names of the Arrow file.
func TestParquet(t *testing.T) {
	type row struct {
		Name  string  `arrow:"name"`
		N     int64   `arrow:"n"`
		Seed  uint64  `arrow:"seed"`
		X     float64 `arrow:"x"`
		Yes   bool    `arrow:"yes"`
		Bytes []byte  `arrow:"bytes"`
	}
	type read struct {
		Name  string  `parquet:"name"`
		N     int64   `parquet:"n"`
		Seed  uint64  `parquet:"seed"`
		X     float64 `parquet:"x"`
		Yes   bool    `parquet:"yes"`
		Bytes []byte  `parquet:"bytes"`
	}
	rows, want := make([]row, batchRows+3), make([]read, batchRows+3)
	for i := range rows {
		rows[i] = row{"é", int64(-i), 1<<63 + uint64(i), 0.5 * float64(i), i%2 == 0, []byte{0, byte(i)}}
		want[i] = read(rows[i])
	}
	path := filepath.Join(t.TempDir(), "a.parquet")
	if err := WriteParquet(path, rows); err != nil {
		t.Fatal(err)
	}
	got, err := parquet.ReadFile[read](path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d[:min(len(d), 500)])
	}
	if err := WriteParquet(filepath.Join(path, "no folder"), rows); err == nil {
		t.Error("written into a file")
	}
	if err := WriteParquet(path, []struct{ A int8 }{{1}}); err == nil {
		t.Error("a type without columns")
	}
}
