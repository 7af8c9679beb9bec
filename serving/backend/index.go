package backend

import (
	"fmt"
	"strings"

	"ctrloop/internal/artifact"
	"ctrloop/serving/safetensors"
)

// Index is what a base model is made of: its linear layers, and the digest of its folder.
type Index struct {
	Digest string
	Layers map[string][2]int64 // module name, as PEFT sees it -> rows (out), columns (in)
}

// ReadIndex reads the index of a Hugging Face model folder.
func ReadIndex(dir string) (*Index, error) {
	tensors, err := safetensors.ReadFolder(dir)
	if err != nil {
		return nil, fmt.Errorf("base model: %w", err)
	}
	digest, err := artifact.DigestDir(dir)
	if err != nil {
		return nil, fmt.Errorf("base model: %w", err)
	}
	x := &Index{Digest: digest, Layers: map[string][2]int64{}}
	qwen := false // Qwen's files call the language model "model." and the vision tower "visual."
	for name := range tensors {
		qwen = qwen || strings.HasPrefix(name, "visual.")
	}
	for name, t := range tensors {
		if rest, ok := strings.CutPrefix(name, "model."); ok && qwen {
			name = "model.language_model." + rest
		}
		module, ok := strings.CutSuffix(ModuleName(name), ".weight")
		if ok && len(t.Shape) == 2 {
			x.Layers[module] = [2]int64{t.Shape[0], t.Shape[1]}
		}
	}
	return x, nil
}

// legacy maps the names under which transformers stores vision-language models to the names of their
// modules. It kept the older file layout when the classes were regrouped under "model." (4.52); adapters
// are named after the modules.
var legacy = [][2]string{
	{"language_model.model.", "model.language_model."},
	{"language_model.lm_head.", "lm_head."},
	{"vision_tower.", "model.vision_tower."},
	{"multi_modal_projector.", "model.multi_modal_projector."},
	{"visual.", "model.visual."},
}

// ModuleName is the module that a stored tensor belongs to.
func ModuleName(tensor string) string {
	for _, l := range legacy {
		if rest, ok := strings.CutPrefix(tensor, l[0]); ok {
			return l[1] + rest
		}
	}
	return tensor
}
