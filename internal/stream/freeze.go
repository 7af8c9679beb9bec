package stream

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// FrozenFolder holds hard links of moments, beside the broker's log. A process that is killed leaves some, the next start
// removes them.
const FrozenFolder = "frozen"

// Frozen is what an embedded broker had on disk at one moment.
type Frozen struct {
	// Links is a folder with the layout of the broker's own. The files in it are hard links, to which the broker
	// goes on appending: only their first bytes belong to the moment.
	Links string `json:"links"`
	// Sizes of the files at the moment, bytes, by path inside of Links.
	Sizes map[string]int64 `json:"sizes"`
}

// Freeze keeps the present state of the broker, across all its files, as kill -9 at this moment would leave it:
// a broker that is started on a copy finds every transaction either committed or not at all. The broker waits
// while files are linked; nothing is copied. Release what was frozen.
func (e *Embedded) Freeze() (f Frozen, err error) {
	f = Frozen{Links: filepath.Join(e.dir, FrozenFolder, rand.Text()), Sizes: map[string]int64{}}
	still := e.cluster.Still(func() { err = f.link(filepath.Join(e.dir, logFolder)) })
	if err = errors.Join(still, err); err != nil {
		return f, errors.Join(fmt.Errorf("freeze the embedded broker: %w", err), f.Release())
	}
	return f, nil
}

// link makes the links of one folder.
func (f Frozen) link(log string) error {
	return filepath.WalkDir(log, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(filepath.Dir(log), path)
		if err != nil {
			return err
		}
		to := filepath.Join(f.Links, name)
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		f.Sizes[filepath.ToSlash(name)] = info.Size()
		return os.Link(path, to)
	})
}

// Release forgets the moment and gives back the disk that only it held.
func (f Frozen) Release() error { return os.RemoveAll(f.Links) }
