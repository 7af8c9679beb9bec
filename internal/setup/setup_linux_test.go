package setup

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFullDisk fills a tiny file system; only root can mount one.
func TestFullDisk(t *testing.T) {
	w := newWorld(t)
	if err := unix.Mount("none", w.home, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("cannot mount a small file system here: %v", err)
	}
	defer unix.Unmount(w.home, unix.MNT_DETACH)
	opts := w.options()
	opts.Lock = []byte("lock")
	assertError(t, Run(t.Context(), opts), "free, set-up needs", "another disk")
	if !strings.Contains(w.log.String(), "to download") {
		t.Errorf("sizes are announced before anything happens; log:\n%s", &w.log)
	}
}
