package columnar

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type row struct {
	Name   string  `arrow:"name"`
	Wins   bool    `arrow:"wins"`
	N      int64   `arrow:"n"`
	Seed   uint64  `arrow:"seed"`
	Weight float64 `arrow:"weight"`
	PNG    []byte  `arrow:"png"`
	hidden int
}

func sample(n int) []row {
	rows := make([]row, n)
	for i := range rows {
		rows[i] = row{
			Name:   strings.Repeat("x", i%7),
			Wins:   i%2 == 0,
			N:      int64(-i),
			Seed:   1<<63 + uint64(i),
			Weight: float64(i) / 3,
			PNG:    bytes.Repeat([]byte{byte(i)}, i%5),
			hidden: 1,
		}
	}
	return rows
}

func TestRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, batchRows, 2*batchRows + 17} {
		a, b := filepath.Join(t.TempDir(), "a.arrow"), filepath.Join(t.TempDir(), "b.arrow")
		want := sample(n)
		for _, p := range []string{a, b} {
			if err := Write(p, want); err != nil {
				t.Fatal(err)
			}
		}
		got, err := Read[row](a)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != n {
			t.Fatalf("%d rows written, %d read", n, len(got))
		}
		equal := cmp.Comparer(func(a, b row) bool {
			return a.Name == b.Name && a.Wins == b.Wins && a.N == b.N && a.Seed == b.Seed && a.Weight == b.Weight && bytes.Equal(a.PNG, b.PNG)
		})
		if d := cmp.Diff(want, got, equal, cmp.AllowUnexported()); n > 0 && d != "" {
			t.Fatal(d)
		}
		for i := range got {
			if got[i].hidden != 0 {
				t.Fatal("a field without a column was written")
			}
		}
		x, _ := os.ReadFile(a)
		y, _ := os.ReadFile(b)
		if !bytes.Equal(x, y) {
			t.Error("the same rows gave two different files: a dataset's digest would depend on the moment")
		}
	}
}

func TestReadSaysWhatIsWrong(t *testing.T) {
	p := filepath.Join(t.TempDir(), "t.arrow")
	if err := Write(p, sample(3)); err != nil {
		t.Fatal(err)
	}
	type other struct {
		Name int64 `arrow:"name"`
	}
	if _, err := Read[other](p); err == nil || !strings.Contains(err.Error(), `column "name" of type int64`) {
		t.Errorf("a column of another type: %v", err)
	}
	if err := os.WriteFile(p, []byte("no arrow"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read[row](p); err == nil || !strings.Contains(err.Error(), "not an Arrow IPC file") {
		t.Errorf("not a table: %v", err)
	}
	if _, err := Read[struct{ A int }](p); err == nil {
		t.Error("a struct without columns was accepted")
	}
}
