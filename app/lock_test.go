package app

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// R10: a second process on a folder is refused, and told who holds it; once that has ended, it is not.
func TestOneProcessOnAFolder(t *testing.T) {
	dir := t.TempDir()
	release, err := lockDir(dir, []Target{Joiner, Sink})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Start(t.Context(), Options{Dir: dir, Config: Default(), Targets: []Target{Joiner}})
	if want := fmt.Sprintf("pid %d, joiner sink", os.Getpid()); !errors.Is(err, ErrDirInUse) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q in it", err, want)
	}
	release()
	again, err := lockDir(dir, []Target{Joiner})
	if err != nil {
		t.Fatal(err)
	}
	again()
}
