package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"ctrloop/app"
	"ctrloop/internal/broker"
	"ctrloop/internal/snapshot"
	"ctrloop/internal/warehouse"
)

// BackupCmd is `ctrloop backup`.
type BackupCmd struct {
	To   string `arg:"" help:"New folder for the backup." type:"path"`
	Dir  string `help:"Folder of the instance, which may run." default:"ctrloop-data" env:"CTRLOOP_DIR" type:"path"`
	JSON bool   `name:"json" help:"Print the manifest."`
}

// Run copies the whole folder of an instance: warehouse and broker belong together, because offsets, their
// intents and the engine's memory of insert tokens say of each other what was done. Of an instance that runs it copies
// what the instance holds still for it.
func (c *BackupCmd) Run(ctx context.Context, out *output) error {
	if st, err := os.Stat(c.Dir); err != nil || !st.IsDir() {
		return withHint(errors.Join(fmt.Errorf("there is no instance in %s", c.Dir), err), "name its folder with --dir")
	}
	m, err := c.atRest(ctx)
	if errors.Is(err, snapshot.ErrInUse) {
		m, err = c.running(ctx)
	}
	if err != nil {
		return err
	}
	return report(out, c.JSON, m, "backed up", c.To)
}

// atRest fails with ErrInUse where something runs.
func (c *BackupCmd) atRest(ctx context.Context) (snapshot.Manifest, error) {
	release, err := snapshot.Lock(filepath.Join(c.Dir, app.LockFile), filepath.Join(c.Dir, app.EngineFolder, "lock"),
		filepath.Join(c.Dir, app.KafkaFolder, "LOCK"))
	if err != nil {
		return snapshot.Manifest{}, err
	}
	defer release()
	// Left out is what instances that were killed left behind.
	return snapshot.Write(ctx, c.To, []snapshot.Source{{Dir: c.Dir, Skip: []string{
		app.LockFile, app.RunFile, app.KafkaFolder + "/" + broker.FrozenFolder, app.EngineFolder + "/" + warehouse.ShadowFolder,
	}}}, version)
}

// running copies beside the instance. Left out are folders of training jobs, which begin anew, and the joiner's cache, which
// may be ahead of the broker's moment.
func (c *BackupCmd) running(ctx context.Context) (m snapshot.Manifest, err error) {
	instance, err := readInstance(c.Dir)
	if errors.Is(err, errNotRunning) {
		return m, withHint(
			fmt.Errorf("something is using %s, and it is no instance that is ready", c.Dir),
			"wait until it is ready, or stop it (a question by `ctrloop sql` uses the folder too)",
		)
	}
	if err != nil {
		return m, err
	}
	if instance.Admin == "" {
		return m, withHint(
			errors.New("the instance has no admin listener, which holds its stores still for a backup"),
			"set admin.address, or stop the instance first",
		)
	}
	notes, err := os.MkdirTemp("", "ctrloop-backup-*")
	if err != nil {
		return m, err
	}
	defer os.RemoveAll(notes)
	// Before the broker's moment: webhooks are sent again rather than left out.
	raw, err := os.ReadFile(filepath.Join(c.Dir, app.WebhooksFile))
	if err == nil {
		err = os.WriteFile(filepath.Join(notes, app.WebhooksFile), raw, 0o600)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return m, err
	}
	frozen, release, err := freeze(ctx, instance)
	if err != nil {
		return m, fmt.Errorf("the instance on %s: %w", c.Dir, err)
	}
	defer release()
	sources := []snapshot.Source{{Dir: notes}, {Dir: c.Dir, Live: true, Skip: []string{
		app.LockFile, app.RunFile, app.RunFile + ".tmp", app.RefillFile, app.WebhooksFile, app.EngineFolder, app.KafkaFolder, app.JobsFolder,
		app.JoinerFolder,
	}}}
	if frozen.Broker != nil {
		sources = append(sources, snapshot.Source{Dir: frozen.Broker.Links, As: app.KafkaFolder, Sizes: frozen.Broker.Sizes})
	}
	if frozen.Engine != nil {
		raw, err := json.Marshal(frozen.Refill)
		if err == nil {
			err = os.WriteFile(filepath.Join(notes, app.RefillFile), raw, 0o600)
		}
		if err != nil {
			return m, err
		}
		sources = append(sources,
			snapshot.Source{Dir: filepath.Join(c.Dir, app.EngineFolder), As: app.EngineFolder, Only: frozen.Engine.Keep, Live: true},
			snapshot.Source{Dir: frozen.Engine.Links, As: app.EngineFolder + "/" + warehouse.Store},
		)
	}
	return snapshot.Write(ctx, c.To, sources, version)
}

// freeze asks an instance to hold its stores still until release is called, or this process ends.
func freeze(ctx context.Context, instance app.Addresses) (f app.Frozen, release func(), err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+instance.Admin+app.BackupPath, nil)
	if err != nil {
		return f, nil, err
	}
	resp, err := clientOf(instance, 0).Do(req) // it lasts as long as the backup
	if err != nil {
		return f, nil, err
	}
	release = func() { _ = resp.Body.Close() }
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
		release()
		return f, nil, errors.Join(fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(text))), err)
	}
	if err := json.NewDecoder(resp.Body).Decode(&f); err != nil {
		release()
		return f, nil, err
	}
	return f, release, nil
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
	_, err := fmt.Fprintf(
		out.stdout,
		"%s %d files, %d bytes, of %s: %s\n",
		verb,
		len(m.Files),
		m.Bytes(),
		m.Created.Format("2006-01-02 15:04:05 MST"),
		where,
	)
	return err
}
