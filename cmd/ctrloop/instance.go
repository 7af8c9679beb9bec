package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"time"

	"ctrloop/app"
	"ctrloop/internal/httpapi"
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

// clientOf asks an instance that runs on this machine, with the token in its folder: whoever may read that may do everything.
func clientOf(i app.Addresses, timeout time.Duration) *http.Client {
	return httpapi.NewClient(i.Token, userName(), timeout, i.API, i.Edge, i.Admin)
}

// userName is the user of this machine, "" where nobody knows.
func userName() string {
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return u.Username
}
