package lockfile

import (
	"errors"
	"path/filepath"
	"testing"
)

// The second one hears who is there, and gets the lock when that one has let go.
func TestAcquire(t *testing.T) {
	path := filepath.Join(t.TempDir(), "LOCK")
	release, err := Acquire(path, "pid 7, ingest joiner")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Acquire(path, "pid 8")
	if held, ok := errors.AsType[*HeldError](err); !ok || held.Holder != "pid 7, ingest joiner" || held.Path != path {
		t.Fatalf("a second one: %v", err)
	}
	release()
	again, err := Acquire(path, "pid 8")
	if err != nil {
		t.Fatal(err)
	}
	defer again()
	_, err = Acquire(path, "pid 9")
	if held, ok := errors.AsType[*HeldError](err); !ok || held.Holder != "pid 8" {
		t.Errorf("a shorter name in its place: %v", err)
	}
}
