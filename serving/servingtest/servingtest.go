// Package servingtest has what tests of serving share: a control log in memory, and model folders that are
// small but whole (real safetensors files, golden answers).
package servingtest

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ctrloop/internal/artifact"
	"ctrloop/schemas/control"
	"ctrloop/serving/backend"
	"ctrloop/serving/backend/vllmfake"
)

// Log is a control log in memory.
type Log struct {
	mu      sync.Mutex
	st      *control.State
	changed chan struct{}
	events  []control.Event
}

// NewLog is empty.
func NewLog() *Log { return &Log{st: control.NewState(), changed: make(chan struct{})} }

// State is a copy of the fold.
func (l *Log) State() *control.State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.st.Clone()
}

// Changed is closed at the next change.
func (l *Log) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// Append applies a command or rejects it.
func (l *Log) Append(ctx context.Context, e control.Event) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.st.Apply(l.st.Offset+1, e); err != nil {
		return err
	}
	l.events = append(l.events, e)
	close(l.changed)
	l.changed = make(chan struct{})
	return nil
}

// Put appends a command and fails the test if it is rejected.
func (l *Log) Put(t testing.TB, typ control.Type, entity string, data any) {
	t.Helper()
	l.mu.Lock()
	n := len(l.events)
	l.mu.Unlock()
	e, err := control.NewEvent(fmt.Sprintf("test-%d-%d", n, rand.Int64()), typ, entity, -1, "test", "", time.Now(), data)
	if err == nil {
		err = l.Append(t.Context(), e)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Await waits until the state satisfies ok.
func (l *Log) Await(t testing.TB, what string, ok func(*control.State) bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		ch := l.Changed()
		st := l.State()
		if ok(st) {
			return
		}
		select {
		case <-ch:
		case <-deadline:
			var models strings.Builder
			for v, m := range st.Models {
				fmt.Fprintf(&models, "%s: %s %s; ", v, m.State, m.Reason)
			}
			t.Fatalf("timed out waiting for %s (%s)", what, models.String())
		}
	}
}

// Layers of the miniature base, as modules.
var Layers = map[string][2]int64{
	"model.language_model.layers.0.self_attn.q_proj": {8, 8},
	"model.language_model.layers.0.mlp.up_proj":      {16, 8},
}

// Tensor of a safetensors file to write.
type Tensor struct {
	Shape []int64
	Fill  float32
}

// WriteSafetensors writes float32 tensors.
func WriteSafetensors(t testing.TB, path string, tensors map[string]Tensor) {
	t.Helper()
	head := map[string]any{}
	var data []byte
	for name, x := range tensors {
		n := int64(1)
		for _, d := range x.Shape {
			n *= d
		}
		at := len(data)
		for i := range n {
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(x.Fill+float32(i)))
		}
		head[name] = map[string]any{"dtype": "F32", "shape": x.Shape, "data_offsets": []int{at, len(data)}}
	}
	raw, err := json.Marshal(head)
	if err != nil {
		t.Fatal(err)
	}
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(raw)))
	write(t, path, append(append(out, raw...), data...))
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// WriteJSON writes a value to a file.
func WriteJSON(t testing.TB, path string, v any) {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, raw)
}

// Base writes the miniature base model and returns its folder. Names are as transformers stores them.
func Base(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	tensors := map[string]Tensor{"vision_tower.encoder.layers.0.mlp.fc1.weight": {Shape: []int64{4, 4}}}
	for m, s := range Layers {
		tensors["language_model.model."+m[len("model.language_model."):]+".weight"] = Tensor{Shape: s[:]}
	}
	WriteSafetensors(t, filepath.Join(dir, "model.safetensors"), tensors)
	WriteJSON(t, filepath.Join(dir, "config.json"), map[string]any{"model_type": "llava"})
	return dir
}

// LoRA is the tensors of a rank-2 adapter that fits the base; seed makes its content.
func LoRA(seed float32) map[string]Tensor {
	out := map[string]Tensor{}
	for m, s := range Layers {
		out["base_model.model."+m+".lora_A.weight"] = Tensor{[]int64{2, s[1]}, seed}
		out["base_model.model."+m+".lora_B.weight"] = Tensor{[]int64{s[0], 2}, seed}
	}
	return out
}

// Question is what the golden answers of test adapters are to.
const Question = "red shoe, dark red. fashion/shoes. describe a background"

// Adapter writes an adapter folder with the golden answer that a sound server of this kind would give.
func Adapter(t testing.TB, trainer *vllmfake.Server, tensors map[string]Tensor, baseDigest string) string {
	t.Helper()
	dir := t.TempDir()
	WriteSafetensors(t, filepath.Join(dir, "adapter_model.safetensors"), tensors)
	WriteJSON(t, filepath.Join(dir, "adapter_config.json"), map[string]any{"peft_type": "LORA", "r": 2, "lora_alpha": 4})
	WriteJSON(t, filepath.Join(dir, "lineage.json"), map[string]any{"base_digest": baseDigest})
	req := backend.ChatRequest{Messages: []backend.Message{{Role: "user", Content: []backend.Part{{Type: "text", Text: Question}}}}}
	answer, logp, base, baseLogp, err := trainer.Golden(dir, req)
	if err != nil {
		t.Fatal(err)
	}
	WriteJSON(t, filepath.Join(dir, "probe.json"), map[string]any{
		"text": Question, "max_tokens": 8, "answer": answer, "logprobs": logp, "base_answer": base, "base_logprobs": baseLogp,
	})
	return dir
}

// Register stores a model folder and registers it as a version of the logical model "prompt".
func Register(t testing.TB, l *Log, store *artifact.Store, dir, base string) string {
	t.Helper()
	digest, err := store.PutDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	version := "prompt-" + digest[:12]
	l.Put(
		t,
		control.ModelRegistered,
		control.ModelEntity(version),
		control.Model{Version: version, Logical: "prompt", Artifact: digest, Base: base},
	)
	return version
}

// Promote makes a version champion.
func Promote(t testing.TB, l *Log, version string) {
	t.Helper()
	l.Put(t, control.ModelPromoted, control.RouteEntity("prompt"), control.Promotion{Logical: "prompt", Version: version})
}
