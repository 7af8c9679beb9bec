// Package servingtest has what tests of serving share: a control log in memory, and model folders that are
// small but whole (real safetensors files, golden answers).
package servingtest

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"ctrloop/internal/artifact"
	"ctrloop/internal/controllog/controltest"
	"ctrloop/schemas/control"
	"ctrloop/serving/backend"
	"ctrloop/serving/backend/vllmfake"
)

// Log is a control log in memory.
type Log = controltest.Log

// NewLog is empty.
func NewLog() *Log { return controltest.New() }

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
	l.Register(t, control.Model{Version: version, Logical: "prompt", Artifact: digest, Base: base})
	return version
}

// Promote makes a version champion.
func Promote(t testing.TB, l *Log, version string) {
	t.Helper()
	l.Promote(t, version)
}
