package trainerbridge

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Named by pattern, so that caches of Python and of its tools stay out of the binary. A folder below weights/*/ (the
// parts of the image model) comes whole.
//
//go:embed trainer/ctrloop_trainer/*.py trainer/ctrloop_trainer/*/*.py trainer/*.yaml trainer/requirements.txt trainer/weights/*/*
var files embed.FS

// Lock is the hashed list of Python packages that the trainer needs.
func Lock() []byte {
	b, err := files.ReadFile("trainer/requirements.txt")
	if err != nil {
		panic(err) // embedded at compile time
	}
	return b
}

// Folder is where the trainer is extracted to, in the folder of downloads.
const Folder = "trainer"

// Extract writes the embedded trainer (package and weights) under dir and returns the folder, which is named
// by its content: an existing one is used as it is. The folder is what PYTHONPATH must hold.
func Extract(dir string) (string, error) {
	h := sha256.New()
	err := walk(func(path string, b []byte) error {
		fmt.Fprintf(h, "%s %d\n", path, len(b))
		h.Write(b)
		return nil
	})
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "trainer-"+hex.EncodeToString(h.Sum(nil))[:12])
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("extract trainer: %w", err)
	}
	tmp, err := os.MkdirTemp(dir, ".trainer-*")
	if err != nil {
		return "", fmt.Errorf("extract trainer: %w", err)
	}
	defer os.RemoveAll(tmp)
	err = walk(func(path string, b []byte) error {
		p := filepath.Join(tmp, filepath.FromSlash(path))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		return os.WriteFile(p, b, 0o644)
	})
	if err != nil {
		return "", fmt.Errorf("extract trainer: %w", err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", fmt.Errorf("extract trainer: %w", err)
	}
	if err := os.Rename(tmp, out); err != nil && !errors.Is(err, fs.ErrExist) {
		if _, serr := os.Stat(out); serr != nil { // not lost to another process that extracted the same
			return "", fmt.Errorf("extract trainer: %w", err)
		}
	}
	return out, nil
}

// BaseModel is the shipped base prompt model inside an extracted trainer.
func BaseModel(extracted string) string { return filepath.Join(extracted, "weights", "prompt-base") }

// ImageModel is the shipped image model inside an extracted trainer.
func ImageModel(extracted string) string { return filepath.Join(extracted, "weights", "image-model") }

func walk(f func(path string, b []byte) error) error {
	return fs.WalkDir(files, "trainer", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := files.ReadFile(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel("trainer", p)
		if err != nil {
			return err
		}
		return f(filepath.ToSlash(rel), b)
	})
}
