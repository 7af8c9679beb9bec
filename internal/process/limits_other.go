//go:build !linux

package process

import (
	"errors"
	"os/exec"
)

var errNoLimits = errors.New("limits of memory and processors are for Linux only: set both to 0 here")

func (l Limits) confineThread() (undo func(), err error) {
	if l != (Limits{}) {
		return nil, errNoLimits
	}
	return func() {}, nil
}

func (l Limits) command(path string, args []string) *exec.Cmd { return exec.Command(path, args...) }
