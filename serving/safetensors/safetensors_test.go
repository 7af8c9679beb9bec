package safetensors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func file(header string, data int) []byte {
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(out, header...), make([]byte, data)...)
}

const two = `{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,3],"data_offsets":[2,26]},"a":{"dtype":"BF16","shape":[],` +
	`"data_offsets":[0,2]}}`

func TestHeader(t *testing.T) {
	got, err := parse(bytes.NewReader(file(two, 26)), int64(8+len(two)+26))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Tensor{"a": {"BF16", []int64{}}, "b": {"F32", []int64{2, 3}}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestBrokenFiles(t *testing.T) {
	entry := func(dtype, shape, span string) string {
		return fmt.Sprintf(`{"a":{"dtype":%q,"shape":%s,"data_offsets":%s}}`, dtype, shape, span)
	}
	cases := map[string][]byte{
		"empty":           {},
		"short":           {1, 2, 3},
		"header too long": file(two, 26)[:40],
		"huge header":     append(bytes.Repeat([]byte{0xff}, 8), 1, 2, 3),
		"not JSON":        file("{", 0),
		"data cut":        file(two, 25),
		"data left over":  file(two, 27),
		"unknown type":    file(entry("F33", "[1]", "[0,4]"), 4),
		"span and shape":  file(entry("F32", "[2]", "[0,4]"), 4),
		"negative span":   file(entry("F32", "[1]", "[4,0]"), 4),
		"negative shape":  file(entry("F32", "[-1,-1]", "[0,4]"), 4),
		"overflowing":     file(entry("F32", "[4294967296,4294967296,4294967296]", "[0,4]"), 4),
		"gap":             file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}`, 3),
		"overlap":         file(`{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}`, 3),
	}
	for name, raw := range cases {
		if _, err := parse(bytes.NewReader(raw), int64(len(raw))); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFolders(t *testing.T) {
	put := func(dir, name string, raw []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	one := func(name string) []byte {
		return file(fmt.Sprintf(`{%q:{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, name), 1)
	}
	dir := t.TempDir()
	put(dir, "s1.safetensors", one("x"))
	put(dir, "s2.safetensors", one("y"))
	put(dir, "model.safetensors.index.json", []byte(`{"weight_map":{"x":"s1.safetensors","y":"s2.safetensors"}}`))
	got, err := ReadFolder(dir)
	if err != nil || len(got) != 2 {
		t.Fatal(got, err)
	}
	put(dir, "model.safetensors.index.json", []byte(`{"weight_map":{"x":"../s1.safetensors"}}`))
	if _, err := ReadFolder(dir); err == nil || !strings.Contains(err.Error(), "outside") {
		t.Errorf("a shard outside the folder: %v", err)
	}
	if _, err := ReadFolder(t.TempDir()); err == nil {
		t.Error("an empty folder is no model")
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(file(two, 26))
	f.Add(file("{}", 0))
	f.Fuzz(func(t *testing.T, raw []byte) {
		tensors, err := parse(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			return
		}
		bits := int64(0) // a file that is accepted holds the data of all its tensors
		for _, x := range tensors {
			n := elementBits[x.Type]
			for _, d := range x.Shape {
				n *= d
			}
			bits += (n + 7) / 8
		}
		if bits > int64(len(raw)) {
			t.Fatalf("%d bytes of tensors in a file of %d", bits, len(raw))
		}
	})
}

// TestAShapeBeyondNumbers: sizes whose product is no int64 are no tensor, and not one of no bytes (review V11).
func TestAShapeBeyondNumbers(t *testing.T) {
	for _, shape := range [][]int64{{1 << 32, 1 << 32}, {1 << 31, 1 << 31, 4}, {1 << 62, 2}, {-1}} {
		if err := checkSpan("F32", shape, [2]int64{0, 0}); err == nil {
			t.Errorf("%v was taken", shape)
		}
	}
	if err := checkSpan("F32", []int64{0, 1 << 40}, [2]int64{0, 0}); err != nil {
		t.Errorf("an empty tensor: %v", err)
	}
}
