package warehouse

import (
	"os"
	"path/filepath"
)

// LibVersion is the pinned release of libchdb (npm @chdb/lib-linux-x64-gnu, ClickHouse 26.7.2.1).
const LibVersion = "26.7.3-stable.1"

// LibPath is where `ctrloop setup` puts the library: CTRLOOP_HOME, by default ~/.cache/ctrloop, or
// wherever LIBCHDB points.
func LibPath() string {
	if p := os.Getenv("LIBCHDB"); p != "" {
		return p
	}
	home := os.Getenv("CTRLOOP_HOME")
	if home == "" {
		user, err := os.UserHomeDir()
		if err != nil {
			user = "." // no home: LIBCHDB or CTRLOOP_HOME is needed, the error of StartEngine names the path
		}
		home = filepath.Join(user, ".cache", "ctrloop")
	}
	return filepath.Join(home, "libchdb", LibVersion, "libchdb.so")
}
