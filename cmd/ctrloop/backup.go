package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"ctrloop/cmd/ctrloop/app"
	"ctrloop/internal/snapshot"
)

// BackupCmd is `ctrloop backup`.
type BackupCmd struct {
	To   string `arg:"" help:"New folder for the backup." type:"path"`
	Dir  string `help:"Folder of the instance, which must not run." default:"ctrloop-data" env:"CTRLOOP_DIR" type:"path"`
	JSON bool   `name:"json" help:"Print the manifest."`
}

// Run copies the whole folder of an instance: warehouse and broker belong together, because offsets, their
// intents and the engine's memory of insert tokens say of each other what was done.
func (c *BackupCmd) Run(ctx context.Context, out *output) error {
	if st, err := os.Stat(c.Dir); err != nil || !st.IsDir() {
		return withHint(errors.Join(fmt.Errorf("there is no instance in %s", c.Dir), err), "name its folder with --dir")
	}
	locks := []string{filepath.Join(app.EngineFolder, "lock"), filepath.Join(app.KafkaFolder, "LOCK")}
	m, err := snapshot.Write(ctx, c.Dir, c.To, locks, []string{app.RunFile}, version)
	if errors.Is(err, snapshot.ErrInUse) {
		return withHint(err, "stop the instance first: a copy of files that change is none")
	}
	if err != nil {
		return err
	}
	return report(out, c.JSON, m, "backed up", c.To)
}

// RestoreCmd is `ctrloop restore`.
type RestoreCmd struct {
	From string `arg:"" help:"Folder that ctrloop backup wrote." type:"existingdir"`
	Dir  string `help:"Folder of the instance: empty, or new." default:"ctrloop-data" env:"CTRLOOP_DIR" type:"path"`
	JSON bool   `name:"json" help:"Print the manifest."`
}

// Run verifies every checksum and brings the folder back, whole or not at all.
func (c *RestoreCmd) Run(ctx context.Context, out *output) error {
	m, err := snapshot.Restore(ctx, c.From, c.Dir)
	if errors.Is(err, snapshot.ErrNotEmpty) {
		return withHint(err, "restore into a new folder with --dir, and move it when you are content")
	}
	if err != nil {
		return err
	}
	return report(out, c.JSON, m, "restored", c.Dir)
}

func report(out *output, asJSON bool, m snapshot.Manifest, verb, where string) error {
	if asJSON {
		return out.printJSON(m)
	}
	_, err := fmt.Fprintf(out.stdout, "%s %d files, %d bytes, of %s: %s\n", verb, len(m.Files), m.Bytes(), m.Created.Format("2006-01-02 15:04:05 MST"), where)
	return err
}
