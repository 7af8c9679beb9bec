package main

import (
	"bytes"
	"context"
	"encoding/json"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging"
)

func render(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(context.Background(), append([]string{"render"}, args...), &out, &errs)
	return out.String(), errs.String(), code
}

func TestRenderGrammar(t *testing.T) {
	out, _, code := render(t, "grammar")
	var v imaging.Vocabulary
	if err := json.Unmarshal([]byte(out), &v); err != nil || code != exitOK || len(v.Scenes) != 14 || len(v.Clickbait) != 4 {
		t.Errorf("exit %d, %v: %s", code, err, out)
	}
}

func TestRenderCatalogue(t *testing.T) {
	out, _, code := render(t, "catalogue", "--hues", "1")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if code != exitOK || len(lines) != 352 {
		t.Fatalf("exit %d, %d lines; want 176 products and as many variants", code, len(lines))
	}
	var p, v catalogue.Entry
	if err := json.Unmarshal([]byte(lines[0]), &p); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(lines[1]), &v); err != nil {
		t.Fatal(err)
	}
	if v.ID != p.ID+"~h50" || v.Holdout != p.Holdout || p.Caption != p.Title+", "+p.Colour+". "+p.Category || len(p.Fits) == 0 ||
		len(p.Harmonious) != 4 {
		t.Errorf("product %+v, variant %+v", p, v)
	}
	if _, errs, code := render(t, "catalogue", "--products", t.TempDir()); code != exitUsage || !strings.Contains(errs, "products.jsonl") {
		t.Errorf("an empty folder: exit %d, %s", code, errs)
	}
}

func TestRenderImage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.png")
	text := "mountain lake, deep teal tones, soft morning light, no props"
	if _, errs, code := render(t, "image", text, "--product", "p-1f34c", "--px", "64", "-o", file); code != exitOK {
		t.Fatalf("exit %d: %s", code, errs)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if im, err := png.Decode(f); err != nil || im.Bounds().Dx() != 64 {
		t.Errorf("%v", err)
	}
	if _, errs, code := render(t, "image", "mountain lake, puce tones, soft morning light, no props", "-o", file); code != exitUsage ||
		!strings.Contains(errs, "puce tones") {
		t.Errorf("unknown words: exit %d, %s", code, errs)
	}
}
