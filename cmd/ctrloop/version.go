package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set by the release build (`-ldflags -X main.version=v1.2.3`).
var version = "dev"

// VersionCmd prints what this binary is.
type VersionCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// versionInfo is what `version --json` prints.
type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// Run prints the version.
func (c *VersionCmd) Run(out *output) error {
	v := versionInfo{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				v.Revision = s.Value
			case "vcs.modified":
				v.Modified = s.Value == "true"
			}
		}
	}
	if c.JSON {
		return out.printJSON(v)
	}
	_, err := fmt.Fprintf(out.stdout, "ctrloop %s %s %s %s\n", v.Version, v.Revision, v.Go, v.Platform)
	return err
}
