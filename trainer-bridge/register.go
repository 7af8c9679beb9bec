package trainerbridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"ctrloop/internal/artifact"
	"ctrloop/schemas/control"
)

// adapterFiles are what a version of the prompt model consists of, and where a rounds job puts them.
var adapterFiles = map[string]string{
	"adapter_config.json":       "adapter/adapter_config.json",
	"adapter_model.safetensors": "adapter/adapter_model.safetensors",
	"metrics.json":              "metrics.json",
	"probe.json":                "probe.json",
	"lineage.json":              "lineage.json",
}

// cardFile says what an adapter is to whoever finds it without us; jobs of earlier releases left none.
const cardFile = "README.md"

// metricsFile is the part of metrics.json that the bridge reads.
type metricsFile struct {
	Gates []control.Gate `json:"gates"`
	rest  map[string]any
}

func readMetrics(dir string) (metricsFile, error) {
	var m metricsFile
	b, err := os.ReadFile(filepath.Join(dir, "metrics.json"))
	if err != nil {
		return m, fmt.Errorf("the job left no metrics: %w", err)
	}
	if err := errors.Join(json.Unmarshal(b, &m), json.Unmarshal(b, &m.rest)); err != nil {
		return m, fmt.Errorf("metrics.json: %w", err)
	}
	delete(m.rest, "gates")
	return m, nil
}

func fileExists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// candidate builds the artifact of a prompt-model version from the result of a rounds job.
func candidate(store *artifact.Store, result string) (digest string, err error) {
	dir, err := os.MkdirTemp("", "ctrloop-adapter-*")
	if err != nil {
		return "", fmt.Errorf("build version: %w", err)
	}
	defer os.RemoveAll(dir)
	files := maps.Clone(adapterFiles)
	if card := filepath.Join(result, "adapter", cardFile); fileExists(card) {
		files[cardFile] = "adapter/" + cardFile
	}
	for name, from := range files {
		b, err := os.ReadFile(filepath.Join(result, filepath.FromSlash(from)))
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("the rounds job left no %s", from)
		}
		if err != nil {
			return "", fmt.Errorf("build version: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return "", fmt.Errorf("build version: %w", err)
		}
	}
	return store.PutDir(dir)
}
