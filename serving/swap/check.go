package swap

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"ctrloop/serving/backend"
	"ctrloop/serving/safetensors"
)

// ErrMisfit is the refusal of an adapter that does not fit the base model.
var ErrMisfit = errors.New("the adapter does not fit the base model")

var loraKey = regexp.MustCompile(`^base_model\.model\.(.+)\.lora_([AB])\.weight$`)

// Limits on adapters that a backend is sent.
type Limits struct {
	MaxRank int  // of the server (--max-lora-rank)
	Vision  bool // the server applies adapters to the vision tower too
}

// CheckAdapter holds an adapter folder against the base: every key must name a linear layer of the base with the
// right shape, both halves of each pair must be there, ranks agree and are allowed. Servers answer 200 to most
// adapters that break these rules, and then serve the base or garbage.
func CheckAdapter(dir string, base *backend.Index, lim Limits) error {
	if err := checkConfig(dir, base.Digest); err != nil {
		return err
	}
	tensors, err := safetensors.ReadHeader(filepath.Join(dir, "adapter_model.safetensors"))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMisfit, err)
	}
	if len(tensors) == 0 {
		return fmt.Errorf("%w: adapter_model.safetensors holds no tensors", ErrMisfit)
	}
	names := make([]string, 0, len(tensors))
	for n := range tensors {
		names = append(names, n)
	}
	slices.Sort(names) // the same complaint every time
	for _, name := range names {
		if err := checkTensor(name, tensors, base, lim); err != nil {
			return fmt.Errorf("%w: %w", ErrMisfit, err)
		}
	}
	return nil
}

func checkTensor(name string, tensors map[string]safetensors.Tensor, base *backend.Index, lim Limits) error {
	m := loraKey.FindStringSubmatch(name)
	if m == nil {
		return fmt.Errorf("key %q is not of the form base_model.model.<layer>.lora_A.weight: it would not be applied", name)
	}
	module, side := m[1], m[2]
	layer, ok := base.Layers[module]
	if !ok {
		return fmt.Errorf("key %q names no linear layer of the base: it would not be applied", name)
	}
	if !lim.Vision &&
		(strings.Contains(module, "vision_tower") || strings.Contains(module, ".visual.") || strings.Contains(module, "multi_modal_projector")) {
		return fmt.Errorf("key %q touches the vision tower, which the model server ignores: train language-side layers only", name)
	}
	shape := tensors[name].Shape
	if len(shape) != 2 {
		return fmt.Errorf("%q has shape %v, want two dimensions", name, shape)
	}
	rank, outer, want := shape[0], shape[1], layer[1]
	other := "base_model.model." + module + ".lora_B.weight"
	if side == "B" {
		rank, outer, want = shape[1], shape[0], layer[0]
		other = "base_model.model." + module + ".lora_A.weight"
	}
	if outer != want {
		return fmt.Errorf("%q has shape %v, the base's layer is %v", name, shape, layer)
	}
	if rank < 1 || rank > int64(lim.MaxRank) {
		return fmt.Errorf("%q has rank %d, the server takes 1 to %d", name, rank, lim.MaxRank)
	}
	o, ok := tensors[other]
	if !ok || len(o.Shape) != 2 || (side == "A" && o.Shape[1] != rank) || (side == "B" && o.Shape[0] != rank) {
		return fmt.Errorf("%q has no %q of rank %d", name, other, rank)
	}
	return nil
}

func checkConfig(dir, baseDigest string) error {
	var cfg struct {
		Type          string   `json:"peft_type"`
		DoRA          bool     `json:"use_dora"`
		ModulesToSave []string `json:"modules_to_save"`
	}
	if err := readJSON(filepath.Join(dir, "adapter_config.json"), &cfg); err != nil {
		return fmt.Errorf("%w: %w", ErrMisfit, err)
	}
	if cfg.Type != "LORA" || cfg.DoRA || len(cfg.ModulesToSave) > 0 {
		return fmt.Errorf(
			"%w: peft_type %q, DoRA %v, modules_to_save %v: only plain LoRA can be swapped at run time",
			ErrMisfit,
			cfg.Type,
			cfg.DoRA,
			cfg.ModulesToSave,
		)
	}
	var lineage struct {
		Base string `json:"base_digest"`
	}
	if err := readJSON(filepath.Join(dir, "lineage.json"), &lineage); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrMisfit, err)
	}
	if lineage.Base != "" && lineage.Base != baseDigest {
		return fmt.Errorf("%w: it was trained on the base %.12s, the servers run %.12s", ErrMisfit, lineage.Base, baseDigest)
	}
	return nil
}

// isAdapter says whether a model folder holds an adapter rather than a whole model.
func isAdapter(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "adapter_config.json"))
	return err == nil
}

func readJSON(path string, v any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return nil
}
