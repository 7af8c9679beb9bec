package app

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging"
)

const (
	// EmbeddedViewPx is the side of the square view in which the embedded models see pictures.
	EmbeddedViewPx = 64
	// hueVariants of each product that training may use, as in the pre-training of the shipped base.
	hueVariants = 5
)

// WriteVocabulary writes what training jobs know of the shop: the grammar of backgrounds, and the catalogue
// with hue variants and this run's held-out products.
func WriteVocabulary(
	dir string,
	cat *catalogue.Catalogue,
	holdout func(product string) bool,
) (grammarFile, catalogueFile string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", fmt.Errorf("write vocabulary: %w", err)
	}
	raw, err := json.Marshal(imaging.Grammar())
	if err != nil {
		return "", "", fmt.Errorf("write vocabulary: %w", err)
	}
	grammarFile = filepath.Join(dir, "grammar.json")
	if err := os.WriteFile(grammarFile, raw, 0o644); err != nil {
		return "", "", fmt.Errorf("write vocabulary: %w", err)
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	for _, p := range cat.Products() {
		for _, v := range append([]*catalogue.Product{p}, cat.Variants(p, hueVariants)...) {
			e := v.Entry()
			e.Holdout = holdout(p.ID)
			if err := enc.Encode(e); err != nil {
				return "", "", fmt.Errorf("write vocabulary: %w", err)
			}
		}
	}
	catalogueFile = filepath.Join(dir, "catalogue.jsonl")
	if err := os.WriteFile(catalogueFile, buf.Bytes(), 0o644); err != nil {
		return "", "", fmt.Errorf("write vocabulary: %w", err)
	}
	return grammarFile, catalogueFile, nil
}
