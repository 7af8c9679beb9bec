// Package shipped builds the binary that users get, for tests of it from outside.
package shipped

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Build builds the binary into a folder, without a C compiler, and returns its path.
func Build(dir string) (path string, err error) {
	path = filepath.Join(dir, "ctrloop")
	build := exec.Command("go", "build", "-o", path, "ctrloop/cmd/ctrloop")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the binary: %w: %s", err, out)
	}
	return path, nil
}
