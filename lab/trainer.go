package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/app"
	"ctrloop/internal/artifact"
	"ctrloop/internal/catalogue"
	"ctrloop/internal/setup"
	"ctrloop/internal/world"
	"ctrloop/schemas"
	trainerbridge "ctrloop/trainer-bridge"
)

// Trainer runs the trainer's jobs for the lab on this machine, outside of any loop.
type Trainer struct {
	*trainerbridge.Local
	BaseDigest string

	home string
}

// TrainerOptions say where everything is.
type TrainerOptions struct {
	Home            string // downloads, and the cache of descriptions
	Dir             string // a folder per job
	Base            string // folder of the base prompt model; empty: the shipped one
	Products        string // folder of the catalogue; empty: the built-in one
	Catalogue       *catalogue.Catalogue
	HoldoutFraction float64
	Threads         int
	Timeout         time.Duration
	Log             zerolog.Logger
}

// OpenTrainer finds the Python environment (an error of internal/setup where it is missing), unpacks the trainer and
// writes the vocabulary of its jobs.
func OpenTrainer(opt TrainerOptions) (*Trainer, error) {
	python, err := setup.Python(opt.Home, trainerbridge.Lock())
	if err != nil {
		return nil, err
	}
	unpacked, err := trainerbridge.Extract(filepath.Join(opt.Home, trainerbridge.Folder))
	if err != nil {
		return nil, err
	}
	base := opt.Base
	if base == "" {
		base = trainerbridge.BaseModel(unpacked)
	}
	digest, err := artifact.DigestDir(base)
	if err != nil {
		return nil, fmt.Errorf("base model: %w", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this binary: %w", err)
	}
	renderer := []string{exe, "render", "pipe"}
	if opt.Products != "" {
		renderer = append(renderer, "--products", opt.Products)
	}
	grammar, products, err := app.WriteVocabulary(
		opt.Dir,
		opt.Catalogue,
		func(id string) bool { return schemas.Holdout(id, opt.HoldoutFraction) },
	)
	if err != nil {
		return nil, err
	}
	return &Trainer{
		Local: &trainerbridge.Local{
			Inputs: trainerbridge.Inputs{
				Python: python, Trainer: unpacked, Dir: opt.Dir, Base: base, Grammar: grammar, Catalogue: products, Renderer: renderer,
				Threads: max(1, opt.Threads),
			},
			Timeout: opt.Timeout, StopGrace: 30 * time.Second, Log: opt.Log,
		},
		BaseDigest: digest, home: opt.Home,
	}, nil
}

// Job is the specification of a job with what all jobs here share filled in.
func (t *Trainer) Job(kind trainerbridge.Kind, id string, seed uint64, hyper map[string]any) trainerbridge.TrainerSpec {
	if hyper == nil {
		hyper = map[string]any{}
	}
	return trainerbridge.TrainerSpec{
		Kind: kind, ID: id, Seed: seed, Threads: t.Threads, Base: t.Base, BaseDigest: t.BaseDigest,
		Renderer: t.Renderer, Grammar: t.Grammar, Catalogue: t.Catalogue, Hyper: hyper,
	}
}

// Describe has the base model describe each product n times. Descriptions depend on base, seed, catalogue and n alone
// and are kept under the home folder: another world over the same products asks for the same ones.
func (t *Trainer) Describe(ctx context.Context, seed uint64, n int) (map[string][]string, error) {
	products, err := os.ReadFile(t.Catalogue)
	if err != nil {
		return nil, fmt.Errorf("descriptions: %w", err)
	}
	cache := filepath.Join(
		t.home,
		"lab",
		fmt.Sprintf("descriptions-%.12s-%016x.jsonl", t.BaseDigest, hash64(t.Trainer, string(products), seed, n)),
	)
	if d, err := ReadDescriptions(cache); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return d, err
	}
	out, err := t.Execute(ctx, t.Job(trainerbridge.KindDescribe, fmt.Sprintf("describe-%d", seed), seed, map[string]any{"samples": n}))
	if err != nil {
		return nil, fmt.Errorf("describe the products: %w", err)
	}
	made := filepath.Join(out, "descriptions.jsonl")
	d, err := ReadDescriptions(made)
	if err != nil {
		return nil, err
	}
	return d, copyFile(made, cache)
}

// copyFile copies a file to a place where it appears whole or not at all.
func copyFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return fmt.Errorf("copy %s: %w", filepath.Base(to), err)
	}
	raw, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("copy %s: %w", filepath.Base(to), err)
	}
	return artifact.WriteFile(to, raw, 0o644)
}

// ReadDescriptions reads lines {"product", "text"}.
func ReadDescriptions(path string) (map[string][]string, error) {
	out := map[string][]string{}
	err := readLines(path, func(l struct {
		Product string `json:"product"`
		Text    string `json:"text"`
	}) error {
		if l.Product == "" {
			return errors.New(`want an object with "product" and "text"`)
		}
		out[l.Product] = append(out[l.Product], l.Text)
		return nil
	})
	return out, err
}

// Untrained describes each product n times as an imperfect writer would: for tests and for runs without Python.
func Untrained(cat *catalogue.Catalogue, seed uint64, n int) map[string][]string {
	out := map[string][]string{}
	r := rand.New(rand.NewPCG(seed, 0x0de5c))
	for _, p := range cat.Products() {
		for range n {
			out[p.ID] = append(out[p.ID], world.Untrained(p, r).String())
		}
	}
	return out
}

// readLines decodes a file of JSON lines; errors name the line.
func readLines[T any](path string, f func(T) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	in := bufio.NewReader(file)
	for n := 1; ; n++ {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		var v T
		if err := json.Unmarshal(line, &v); err != nil {
			return fmt.Errorf("%s, line %d: %w", path, n, err)
		}
		if err := f(v); err != nil {
			return fmt.Errorf("%s, line %d: %w", path, n, err)
		}
	}
}
