package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// runFile in the folder of an instance says where it answers while it runs.
const runFile = "run.json"

// instance is what run.json says; addresses are host:port or URLs, the warehouse's is a DSN.
type instance struct {
	API        string `json:"api"`
	Edge       string `json:"edge"`
	Admin      string `json:"admin"`
	Kafka      string `json:"kafka"`
	ClickHouse string `json:"clickhouse"`
}

// errNotRunning means that no instance runs on a folder.
var errNotRunning = errors.New("no instance runs")

// readInstance reads the addresses of the instance that runs on dir, errNotRunning where none left any.
func readInstance(dir string) (instance, error) {
	var i instance
	raw, err := os.ReadFile(filepath.Join(dir, runFile))
	if errors.Is(err, fs.ErrNotExist) {
		return i, fmt.Errorf("%w on %s", errNotRunning, dir)
	}
	if err != nil {
		return i, fmt.Errorf("find the instance on %s: %w", dir, err)
	}
	if err := json.Unmarshal(raw, &i); err != nil {
		return i, fmt.Errorf("find the instance on %s: %s: %w", dir, runFile, err)
	}
	return i, nil
}
