package main

import (
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"net/http"

	"ctrloop/internal/access"
	"ctrloop/internal/artifact"
	"ctrloop/internal/httpapi"
	"ctrloop/pairer/dataset"
	"ctrloop/schemas"
)

// The commands on data sets of a folder: names by the beginning of a digest and by path, and what is refused. What they compute has its
// tests in pairer/dataset.
func TestDatasetCommands(t *testing.T) {
	dir := t.TempDir()
	store, err := artifact.Open(filepath.Join(dir, "artifacts"))
	if err != nil {
		t.Fatal(err)
	}
	put := func(weight float64) string {
		set := t.TempDir()
		rows := []dataset.CreativeRow{
			{Creative: "c-1", Product: "p", Description: "a lake"}, {Creative: "c-2", Product: "p", Description: "a road"},
		}
		pair := schemas.Pair{
			ID: "pair-1", Product: "p", Split: "train", Weight: weight, Left: true,
			Chosen: schemas.PairSide{Creative: "c-1"}, Rejected: schemas.PairSide{Creative: "c-2"},
		}
		if _, err := dataset.Write(set, []schemas.Pair{pair}, rows, dataset.Manifest{Policy: "posterior"}); err != nil {
			t.Fatal(err)
		}
		digest, err := store.PutDir(set)
		if err != nil {
			t.Fatal(err)
		}
		return digest
	}
	a, b := put(0.5), put(0.75)
	altered := put(0.9)
	if err := os.WriteFile(filepath.Join(store.Path(altered), dataset.RecordsFile), []byte("{}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	other, err := store.PutBytes([]byte("no data set"))
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"show " + a[:10], 0, "1 training, worth 0 sure comparisons"},
		{"show " + store.Path(a), 0, "policy posterior"},
		{"show " + other, 1, "no data set"},
		{"show zz", 1, "not the beginning of a digest"},
		{"verify " + a, 0, "is what it says"},
		{"verify " + altered, 1, "has the content of"},
		{"verify " + store.Path(altered), 0, "is what it says"}, // its tables are
		{"diff " + a + " " + b, 0, "information: 0.2 sure comparisons"},
		{"export " + a + " --format trl --out " + out, 0, "train: 1 rows"},
		{"export " + a + " --format trl --out " + out, 1, "is not empty"},
		{"export " + a + " --format csv --out " + out, 2, "parquet"},
		{"export " + a + " --format trl", 2, "--out"},
	} {
		code, stdout, stderr := cli(t, append(append([]string{"dataset"}, strings.Fields(c.args)...), "--dir", dir)...)
		if code != c.code || !strings.Contains(stdout+stderr, c.want) {
			t.Errorf("%s: exit %d, want %q:\n%s%s", c.args, code, c.want, stdout, stderr)
		}
	}
	code, stdout, stderr := cli(t, "dataset", "show", a, "--dir", filepath.Join(dir, "none"))
	if code != 1 || !strings.Contains(stderr, "--dir") {
		t.Errorf("without a folder: exit %d:\n%s%s", code, stdout, stderr)
	}
	srv := httptest.NewServer(httpapi.Open(httpapi.Route{Method: "GET", Path: "/v1/datasets", Scope: access.Read,
		Handle: func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"datasets":[{"digest":"`+a+`","pairs":1,"versions":["prompt-1"],"failed":["reward-1"]}]}`)
		}}))
	defer srv.Close()
	if code, stdout, stderr := cli(t, "dataset", "ls", "--api", srv.URL); code != 0 || !strings.Contains(stdout, a[:12]) ||
		!strings.Contains(stdout, "prompt-1") || !strings.Contains(stdout, "reward-1") {
		t.Errorf("exit %d:\n%s%s", code, stdout, stderr)
	}
}
