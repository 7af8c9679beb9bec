package dataset

import (
	"bytes"
	"encoding/json"
	"errors"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ctrloop/schemas"
)

// made writes a small data set with real pictures.
func made(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	rows := make([]CreativeRow, len(shop))
	for i, c := range shop {
		m := image.NewNRGBA(image.Rect(0, 0, 4, 4))
		m.Set(1, 1, color.NRGBA{uint8(40 * i), 9, 9, 255})
		var b bytes.Buffer
		if err := png.Encode(&b, m); err != nil {
			t.Fatal(err)
		}
		c.ImagePNG, c.Description, c.Impressions, c.Clicks = b.Bytes(), "a lake by "+c.Creative, 100, int64(i)
		rows[i] = c
	}
	rows[3].Description = rows[2].Description // b1 and b2
	left := pair("p", "a", "a1", "a2", "train")
	left.Left = true
	if _, err := Write(dir, []schemas.Pair{left, pair("s", "b", "b1", "b2", "train"), pair("q", "x", "x1", "x2", "test")}, rows,
		Manifest{Policy: "posterior"}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestVerify(t *testing.T) {
	dir := made(t)
	if err := Verify(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, PairsFile)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Replace(raw, []byte("x2"), []byte("a1"), 1)
	if bytes.Equal(bad, raw) {
		t.Fatal("nothing to alter")
	}
	if err := os.WriteFile(path, bad, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Verify(dir); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "pairs.arrow has SHA-256") {
		t.Errorf("an altered table: %v", err)
	}
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	m, err := ReadManifest(dir)
	if err != nil {
		t.Fatal(err)
	}
	m.Train, m.Effective = 7, 3
	out, _ := json.Marshal(m)
	if err := os.WriteFile(filepath.Join(dir, ManifestFile), out, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Verify(dir); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "2 training pairs, the manifest says 7") ||
		!strings.Contains(err.Error(), "add up to 1, the manifest says 3") {
		t.Errorf("wrong counts: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := Verify(dir); err == nil || errors.Is(err, ErrInvalid) {
		t.Errorf("a table that is not there: %v", err)
	}
}

// What another program may have put into a data set.
func TestProblems(t *testing.T) {
	good := PairRow{PairID: "p", Product: "a", Left: "a1", Right: "a2", Weight: 0.5, Split: "train"}
	for told, change := range map[string]func(*PairRow){
		"names creative zz, which is not in": func(p *PairRow) { p.Left = "zz" },
		"its creative b1 of b":               func(p *PairRow) { p.Left = "b1" },
		"against itself":                     func(p *PairRow) { p.Left = "a2" },
		"weighs 0":                           func(p *PairRow) { p.Weight = 0 },
		"weighs 1.5":                         func(p *PairRow) { p.Weight = 1.5 },
		"a split \"exam\"":                   func(p *PairRow) { p.Split = "exam" },
		"product a of test pair q is learned": func(p *PairRow) {
			p.PairID, p.Split = "q", "test"
		},
		"there twice": func(*PairRow) {},
	} {
		bad := good
		change(&bad)
		got := strings.Join(Set{Pairs: []PairRow{good, bad}, Creatives: shop}.problems(), "\n")
		if !strings.Contains(got, told) {
			t.Errorf("want %q, got %q", told, got)
		}
	}
	same := append([]CreativeRow{row("y1", "y", "1"), row("y2", "y", "7")}, shop...)
	exam := PairRow{PairID: "q", Product: "y", Left: "y1", Right: "y2", Weight: 1, Split: "test"}
	got := Set{Pairs: []PairRow{good, exam}, Creatives: same}.problems()
	if len(got) != 1 || !strings.Contains(got[0], "training product a has, too") {
		t.Errorf("%v", got)
	}
}

func TestDiff(t *testing.T) {
	row := func(left, right string, leftWins bool, weight float64) PairRow {
		return PairRow{PairID: left + right, Product: "a", Left: left, Right: right, LeftWins: leftWins, Weight: weight, Split: "train"}
	}
	before := Set{Pairs: []PairRow{row("a1", "a2", true, 0.5), row("a1", "a3", true, 0.25), row("a2", "a3", true, 0.5)}, Creatives: shop[:2]}
	// The sides are drawn anew; a1 against a2 has turned around, a2 against a3 is a tie, a1 against a4 is new.
	after := Set{
		Pairs:     []PairRow{row("a2", "a1", true, 0.5), row("a3", "a1", false, 0.25), row("a1", "a4", false, 1)},
		Creatives: slices.Clone(shop[1:3]),
	}
	after.Creatives[0].Description = "another"
	got := Diff(before, after)
	want := Difference{
		NewPairs: 1, GonePairs: 1, TurnedPairs: 1, NewCreatives: 1, GoneCreatives: 1, Redrawn: 1, Information: 2.5,
		Largest: []PairChange{
			{"a", "", "a1", "a2", 0.5, -0.5}, {"a", "", "a1", "a4", 0, -1}, {"a", "", "a2", "a3", 0.5, 0},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestExport(t *testing.T) {
	dir := made(t)
	export := func(f Format) (string, Exported) {
		t.Helper()
		out := filepath.Join(t.TempDir(), "out")
		e, err := Export(dir, out, f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Export(dir, out, f); err == nil || !strings.Contains(err.Error(), "not empty") {
			t.Errorf("over another one: %v", err)
		}
		return out, e
	}
	line := func(path string, into any) {
		t.Helper()
		raw, err := os.ReadFile(path)
		if err == nil {
			err = json.NewDecoder(bytes.NewReader(raw)).Decode(into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}

	out, e := export(FormatTRL)
	files, rows := []string{"manifest.json", "test.jsonl", "train.jsonl"}, map[string]int{"train": 1, "test": 1}
	if d := cmp.Diff(Exported{Format: FormatTRL, Files: files, Rows: rows, Same: 1}, e); d != "" {
		t.Error(d)
	}
	var trl struct{ Prompt, Chosen, Rejected []message }
	line(filepath.Join(out, "train.jsonl"), &trl)
	if trl.Chosen[0] != (message{"assistant", "a lake by a1"}) || trl.Rejected[0].Content != "a lake by a2" || trl.Prompt[0].Role != "user" {
		t.Errorf("%+v", trl)
	}

	out, e = export(FormatSwift)
	if e.Rows["train"] != 2 || e.Same != 0 {
		t.Errorf("%+v", e)
	}
	var swift map[string]any
	line(filepath.Join(out, "train.jsonl"), &swift)
	for _, k := range []string{"messages", "images", "rejected_messages", "rejected_images"} {
		if swift[k] == nil {
			t.Errorf("lacks %s: %v", k, swift)
		}
	}
	if _, err := os.Stat(filepath.Join(out, swift["images"].([]any)[0].(string))); err != nil {
		t.Error(err)
	}

	out, _ = export(FormatLLaVA)
	var llava []struct {
		Image         string
		Conversations []struct{ From, Value string }
	}
	line(filepath.Join(out, "train.json"), &llava)
	if len(llava) != 2 || llava[0].Conversations[1].Value != "left" || llava[1].Conversations[1].Value != "right" {
		t.Errorf("%+v", llava)
	}
	f, err := os.Open(filepath.Join(out, llava[0].Image))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if wide, err := png.Decode(f); err != nil || wide.Bounds() != image.Rect(0, 0, 8, 4) || wide.At(5, 1) != (color.NRGBA{40, 9, 9, 255}) {
		t.Errorf("%v, %v", wide, err)
	}

	out, _ = export(FormatParquet)
	for _, name := range []string{"pairs.parquet", "creatives.parquet"} {
		if raw, err := os.ReadFile(filepath.Join(out, name)); err != nil || !bytes.HasPrefix(raw, []byte("PAR1")) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Export(dir, t.TempDir(), "csv"); err == nil {
		t.Error("a format that nobody knows")
	}
}

func TestPictureNamesStayInTheFolder(t *testing.T) {
	for _, id := range []string{"../../etc/x", "a/b", `a\b`, ".."} {
		if p := picture(id); !strings.HasPrefix(p, pictureFolder+"/") || strings.Contains(p, "..") || strings.Count(p, "/") != 1 {
			t.Errorf("%q gives %q", id, p)
		}
	}
}
