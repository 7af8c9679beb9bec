package app

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrDirInUse says that another process runs on the folder.
var ErrDirInUse = errors.New("another process runs on this folder")

// lockDir takes a folder for this process; the kernel lets go when it ends, however it ends. Two on one folder would write each other's
// addresses, caches and notes.
func lockDir(dir string, targets []Target) (release func(), err error) {
	path := filepath.Join(dir, LockFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the data folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder := make([]byte, 200)
		n, _ := f.Read(holder)
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w (%s): stop it, or give each process a folder of its own (--dir)", dir, ErrDirInUse, holder[:n])
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	names := make([]string, len(targets))
	for i, t := range targets {
		names[i] = string(t)
	}
	if err := f.Truncate(0); err == nil { // for the message above alone
		_, _ = fmt.Fprintf(f, "pid %d, %s", os.Getpid(), strings.Join(names, " "))
	}
	return func() { _ = f.Close() }, nil
}
