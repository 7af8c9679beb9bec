package app

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"ctrloop/internal/lockfile"
)

// ErrDirInUse says that another process runs on the folder.
var ErrDirInUse = errors.New("another process runs on this folder")

// lockDir takes a folder for this process. Two on one folder would write each other's addresses, caches and notes.
func lockDir(dir string, targets []Target) (release func(), err error) {
	names := make([]string, len(targets))
	for i, t := range targets {
		names[i] = string(t)
	}
	release, err = lockfile.Acquire(filepath.Join(dir, LockFile), fmt.Sprintf("pid %d, %s", os.Getpid(), strings.Join(names, " ")))
	if held, ok := errors.AsType[*lockfile.HeldError](err); ok {
		return nil, fmt.Errorf("%s: %w (%s): stop it, or give each process a folder of its own (--dir)", dir, ErrDirInUse, held.Holder)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the data folder: %w", err)
	}
	return release, nil
}
