package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"ctrloop/app"
)

// errNotRunning means that no instance runs on a folder.
var errNotRunning = errors.New("no instance runs")

// readInstance reads the addresses of the instance that runs on dir, errNotRunning where none left any.
func readInstance(dir string) (app.Addresses, error) {
	var i app.Addresses
	raw, err := os.ReadFile(filepath.Join(dir, app.RunFile))
	if errors.Is(err, fs.ErrNotExist) {
		return i, fmt.Errorf("%w on %s", errNotRunning, dir)
	}
	if err != nil {
		return i, fmt.Errorf("find the instance on %s: %w", dir, err)
	}
	if err := json.Unmarshal(raw, &i); err != nil {
		return i, fmt.Errorf("find the instance on %s: %s: %w", dir, app.RunFile, err)
	}
	return i, nil
}
