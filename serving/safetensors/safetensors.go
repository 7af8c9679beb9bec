// Package safetensors reads the header of safetensors files: names, types and shapes of tensors, without
// loading them. Format: 8 bytes little-endian header length, JSON header, data
// (https://huggingface.co/docs/safetensors).
package safetensors

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// maxHeader is the format's own bound on the header, in bytes.
const maxHeader = 100_000_000

// maxBits bounds one tensor: a product of sizes beyond it is no tensor, and would soon be no number either.
const maxBits = 1 << 53

// ErrFormat is returned for a file that is not whole and well formed.
var ErrFormat = errors.New("not a complete safetensors file")

// Tensor describes one tensor.
type Tensor struct {
	Type  string  // "F32", "BF16", ...
	Shape []int64 // outermost first
}

// elementBits is the width of each type of the format.
var elementBits = map[string]int64{
	"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
	"I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}

// ReadHeader reads the tensors of one file, and checks that the file holds all of their data and nothing else.
func ReadHeader(path string) (map[string]Tensor, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	t, err := parse(f, fi.Size())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return t, nil
}

func parse(r io.Reader, size int64) (map[string]Tensor, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("%w: shorter than 8 bytes", ErrFormat)
	}
	n := binary.LittleEndian.Uint64(head[:])
	if n > maxHeader || int64(n) > size-8 {
		return nil, fmt.Errorf("%w: header of %d bytes in a file of %d", ErrFormat, n, size)
	}
	raw := make([]byte, n)
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrFormat, err)
	}
	var entries map[string]json.RawMessage
	if err := json.Unmarshal(raw, &entries); err != nil {
		return nil, fmt.Errorf("%w: header: %v", ErrFormat, err)
	}
	delete(entries, "__metadata__")
	out := make(map[string]Tensor, len(entries))
	spans := make([][2]int64, 0, len(entries))
	for name, e := range entries {
		var t struct {
			Type  string   `json:"dtype"`
			Shape []int64  `json:"shape"`
			Span  [2]int64 `json:"data_offsets"`
		}
		if err := json.Unmarshal(e, &t); err != nil {
			return nil, fmt.Errorf("%w: tensor %q: %v", ErrFormat, name, err)
		}
		if err := checkSpan(t.Type, t.Shape, t.Span); err != nil {
			return nil, fmt.Errorf("%w: tensor %q: %v", ErrFormat, name, err)
		}
		out[name] = Tensor{Type: t.Type, Shape: t.Shape}
		spans = append(spans, t.Span)
	}
	return out, checkCover(spans, size-8-int64(n))
}

func checkSpan(typ string, shape []int64, span [2]int64) error {
	bits, ok := elementBits[typ]
	if !ok {
		return fmt.Errorf("unknown type %q", typ)
	}
	for _, d := range shape {
		if d < 0 || d > 0 && bits > maxBits/d {
			return fmt.Errorf("impossible shape %v", shape)
		}
		bits *= d
	}
	if span[1]-span[0] != (bits+7)/8 {
		return fmt.Errorf("shape %v of %s takes %d bytes, the file gives it %d", shape, typ, (bits+7)/8, span[1]-span[0])
	}
	return nil
}

// checkCover sees that the tensors follow each other without gap or overlap and end where the file ends.
func checkCover(spans [][2]int64, size int64) error {
	slices.SortFunc(spans, func(a, b [2]int64) int {
		return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1]))
	})
	at := int64(0)
	for _, s := range spans {
		if s[0] != at {
			return fmt.Errorf("%w: data has a gap or overlap at byte %d", ErrFormat, at)
		}
		at = s[1]
	}
	if at != size {
		return fmt.Errorf("%w: tensors take %d bytes, the file has %d", ErrFormat, at, size)
	}
	return nil
}

// ReadFolder reads all tensors of a Hugging Face model folder: model.safetensors, or the shards that
// model.safetensors.index.json names.
func ReadFolder(dir string) (map[string]Tensor, error) {
	one := filepath.Join(dir, "model.safetensors")
	if _, err := os.Stat(one); err == nil {
		return ReadHeader(one)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "model.safetensors.index.json"))
	if err != nil {
		return nil, fmt.Errorf("%s holds neither model.safetensors nor model.safetensors.index.json", dir)
	}
	var idx struct {
		Weights map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(raw, &idx); err != nil {
		return nil, fmt.Errorf("model.safetensors.index.json: %w", err)
	}
	out := map[string]Tensor{}
	read := map[string]bool{}
	for _, shard := range idx.Weights {
		if read[shard] {
			continue
		}
		read[shard] = true
		if filepath.Base(shard) != shard {
			return nil, fmt.Errorf("model.safetensors.index.json names %q outside its folder", shard)
		}
		t, err := ReadHeader(filepath.Join(dir, shard))
		if err != nil {
			return nil, err
		}
		maps.Copy(out, t)
	}
	return out, nil
}
