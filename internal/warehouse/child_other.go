//go:build !(linux && amd64)

package warehouse

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
)

func platformError() error {
	return fmt.Errorf(
		"there is no embedded ClickHouse for %s/%s (only linux/amd64): give a server (clickhouse.dsn in the configuration, --dsn of sql "+
			"and migrate)",
		runtime.GOOS,
		runtime.GOARCH,
	)
}

func runChild(string, []string) error              { return platformError() }
func openPTY() (master, slave *os.File, err error) { return nil, nil, platformError() }
func setChildAttributes(*exec.Cmd)                 {}
func lockFile(*os.File) error                      { return platformError() }
func confinable() bool                             { return false }
