// Package lockfile keeps a second process out of a folder, and says who is in it.
package lockfile

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// HeldError says that another process holds a lock.
type HeldError struct {
	Path   string
	Holder string // what that process said of itself
}

// Error implements error.
func (e *HeldError) Error() string { return fmt.Sprintf("%s is held (%s)", e.Path, e.Holder) }

// Acquire takes a lock for this process until release, and writes who holds it; the kernel lets go when the process ends, however it
// ends. Where another one has it the error is a [*HeldError].
func Acquire(path, holder string) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		said := make([]byte, 200)
		n, _ := f.Read(said)
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &HeldError{Path: path, Holder: string(said[:n])}
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := f.Truncate(0); err == nil { // what it says is for messages alone
		_, _ = f.WriteString(holder)
	}
	return func() { _ = f.Close() }, nil
}
