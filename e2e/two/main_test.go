// Package two runs two processes of every role of the shipped shipped on one broker and one warehouse, kills and stops them at
// drawn moments under traffic, and holds what is left against the truth. The stand-ins are named: the model servers
// (vllmfake) and the trainer's Python program (trainer_test.go); all else is what is shipped.
package two

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"ctrloop/internal/warehouse"
)

var shipped string

func TestMain(m *testing.M) {
	warehouse.MaybeChild()
	if filepath.Base(os.Args[0]) == trainerProgram {
		train(os.Args[1:])
		return
	}
	dir, err := os.MkdirTemp("", "ctrloop-two-*")
	if err == nil {
		shipped = filepath.Join(dir, "ctrloop")
		build := exec.Command("go", "build", "-o", shipped, "ctrloop/cmd/ctrloop")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		var out []byte
		if out, err = build.CombinedOutput(); err != nil {
			err = fmt.Errorf("build the shipped: %w: %s", err, out)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}
