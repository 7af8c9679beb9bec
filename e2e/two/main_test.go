// Package two runs two processes of every role of the shipped binary on one broker and one warehouse, kills and stops them at
// drawn moments under traffic, and holds what is left against the truth. The stand-ins are named: the model servers
// (vllmfake) and the trainer's Python program (trainer_test.go); all else is what is shipped.
package two

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"ctrloop/e2e/shipped"
	"ctrloop/internal/warehouse"
)

// program is the shipped binary.
var program string

func TestMain(m *testing.M) {
	warehouse.MaybeChild()
	if filepath.Base(os.Args[0]) == trainerProgram {
		train(os.Args[1:])
		return
	}
	dir, err := os.MkdirTemp("", "ctrloop-two-*")
	if err == nil {
		program, err = shipped.Build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}
