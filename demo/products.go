package demo

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"image/png"
	"os"
	"path/filepath"

	"ctrloop/internal/catalogue"
)

// products returns the folder of the catalogue ("" for the built-in one) and the products that are held out
// by name. With a folder of held-out products the two are merged into one catalogue in the demo's folder.
func products(opt Options) (dir string, held []string, err error) {
	if opt.Holdout == "" {
		return opt.Products, nil, nil
	}
	main, err := catalogue.Open(opt.Products)
	if err != nil {
		return "", nil, fmt.Errorf("--products: %w", err)
	}
	extra, err := catalogue.Load(opt.Holdout)
	if err != nil {
		return "", nil, fmt.Errorf("--holdout: %w", err)
	}
	for _, p := range extra.Products() {
		if _, both := main.Get(p.ID); both {
			return "", nil, fmt.Errorf("--holdout: product %s is in the training catalogue too: a product is either learned from or held out", p.ID)
		}
		held = append(held, p.ID)
	}
	dir = filepath.Join(opt.Dir, "products")
	return dir, held, writeCatalogue(dir, append(main.Products(), extra.Products()...))
}

// writeCatalogue writes products as a folder that catalogue.Load reads.
func writeCatalogue(dir string, ps []*catalogue.Product) error {
	images := filepath.Join(dir, "images")
	if err := os.MkdirAll(images, 0o755); err != nil {
		return fmt.Errorf("merge catalogues: %w", err)
	}
	var list bytes.Buffer
	w := bufio.NewWriter(&list)
	enc := json.NewEncoder(w)
	for i, p := range ps {
		name := fmt.Sprintf("%06d.png", i)
		var picture bytes.Buffer
		if err := png.Encode(&picture, p.Cutout); err != nil {
			return fmt.Errorf("merge catalogues: product %s: %w", p.ID, err)
		}
		if err := os.WriteFile(filepath.Join(images, name), picture.Bytes(), 0o644); err != nil {
			return fmt.Errorf("merge catalogues: %w", err)
		}
		if err := enc.Encode(map[string]string{"id": p.ID, "title": p.Title, "category": p.Category, "image": "images/" + name}); err != nil {
			return fmt.Errorf("merge catalogues: %w", err)
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("merge catalogues: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, "products.jsonl"), list.Bytes(), 0o644)
}
