// Package snapshot copies a folder at rest with a manifest of checksums, and brings it back. The manifest is
// written last: a copy without one was interrupted, and is not restored.
package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ManifestName is the file that makes a folder a snapshot; Data holds the copy.
const (
	ManifestName = "manifest.json"
	Data         = "data"
)

// Manifest lists what a snapshot holds.
type Manifest struct {
	Created time.Time `json:"created"`
	Version string    `json:"version"` // of the program that wrote it
	Files   []File    `json:"files"`
}

// File is one file or symbolic link, by its path inside of the folder, with slashes. Folders are those of
// their paths, and Empty ones.
type File struct {
	Path   string      `json:"path"`
	Mode   fs.FileMode `json:"mode"` // permissions
	Size   int64       `json:"size"`
	SHA256 string      `json:"sha256,omitempty"`
	Link   string      `json:"link,omitempty"` // where a symbolic link points, inside of the folder
	Dir    bool        `json:"dir,omitempty"`
}

// Bytes of all files.
func (m Manifest) Bytes() (n int64) {
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}

// Errors of this package.
var (
	ErrInUse      = errors.New("the folder is in use")
	ErrNotEmpty   = errors.New("the folder is not empty")
	ErrIncomplete = errors.New("the backup is not complete")
	ErrDamaged    = errors.New("the backup is damaged")
)

// Write copies src to dst, which must be empty or missing. It holds the locks, files inside of src that running
// programs hold by flock, while it copies; files named in skip stay behind.
func Write(ctx context.Context, src, dst string, locks, skip []string, version string) (m Manifest, err error) {
	for _, name := range locks {
		release, err := lock(filepath.Join(src, name))
		if err != nil {
			return m, err
		}
		defer release()
	}
	if err := empty(dst); err != nil {
		return m, err
	}
	left := map[string]bool{}
	for _, s := range skip {
		left[s] = true
	}
	m = Manifest{Created: time.Now().UTC().Truncate(time.Second), Version: version}
	err = filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(src, path)
		if err != nil || left[name] {
			return err
		}
		f, err := describe(src, name, d)
		if err != nil {
			return err
		}
		if f, err = put(f, path, filepath.Join(dst, Data, name)); err != nil {
			return err
		}
		if name != "." {
			m.Files = append(m.Files, f)
		}
		return nil
	})
	if err != nil {
		return m, fmt.Errorf("copy %s: %w", src, err)
	}
	raw, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return m, err
	}
	return m, writeWhole(filepath.Join(dst, ManifestName), raw)
}

// Verify reads a snapshot and compares every file with the manifest.
func Verify(ctx context.Context, dir string) (m Manifest, err error) {
	raw, err := os.ReadFile(filepath.Join(dir, ManifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("%s: %w: it has no %s, the backup was interrupted or this is none", dir, ErrIncomplete, ManifestName)
	}
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("%s: %s: %w: %w", dir, ManifestName, ErrDamaged, err)
	}
	for _, f := range m.Files {
		if err := ctx.Err(); err != nil {
			return m, err
		}
		if !filepath.IsLocal(filepath.FromSlash(f.Path)) || f.Link != "" && !filepath.IsLocal(filepath.Join(filepath.Dir(f.Path), f.Link)) {
			return m, fmt.Errorf("%s: %q leads out of the folder: %w", dir, f.Path, ErrDamaged)
		}
		if f.Dir || f.Link != "" {
			continue
		}
		size, sum, err := copyTo(io.Discard, filepath.Join(dir, Data, filepath.FromSlash(f.Path)))
		if err != nil || size != f.Size || sum != f.SHA256 {
			return m, errors.Join(fmt.Errorf("%s: %s is not what was backed up: %w", dir, f.Path, ErrDamaged), err)
		}
	}
	return m, nil
}

// Restore brings a snapshot to dst, which must be empty or missing. dst appears whole or not at all.
func Restore(ctx context.Context, dir, dst string) (Manifest, error) {
	m, err := Verify(ctx, dir)
	if err != nil {
		return m, err
	}
	if err := empty(dst); err != nil {
		return m, err
	}
	partial := dst + ".restoring"
	if err := os.RemoveAll(partial); err != nil { // of a restore that was killed
		return m, err
	}
	if err := os.MkdirAll(partial, 0o700); err != nil {
		return m, err
	}
	for _, f := range m.Files {
		if err := ctx.Err(); err != nil {
			return m, err
		}
		name := filepath.FromSlash(f.Path)
		got, err := put(f, filepath.Join(dir, Data, name), filepath.Join(partial, name))
		if err != nil {
			return m, fmt.Errorf("restore %s: %w", f.Path, err)
		}
		if got.SHA256 != f.SHA256 {
			return m, fmt.Errorf("restore %s: %w", f.Path, ErrDamaged)
		}
	}
	if err := os.Remove(dst); err != nil && !errors.Is(err, fs.ErrNotExist) { // empty, see above
		return m, err
	}
	return m, os.Rename(partial, dst)
}

func describe(src, name string, d fs.DirEntry) (File, error) {
	info, err := d.Info()
	if err != nil {
		return File{}, err
	}
	f := File{Path: filepath.ToSlash(name), Mode: info.Mode().Perm(), Dir: d.IsDir()}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		if f.Link, err = os.Readlink(filepath.Join(src, name)); err != nil {
			return f, err
		}
		if !filepath.IsLocal(filepath.Join(filepath.Dir(name), f.Link)) {
			return f, fmt.Errorf("%s points out of the folder, to %s: it would not be in the copy", name, f.Link)
		}
	case !d.IsDir() && !info.Mode().IsRegular():
		return f, fmt.Errorf("%s is no plain file: is something still running there?", name)
	}
	return f, nil
}

// put makes one file, link or folder and fills in its checksum.
func put(f File, from, to string) (File, error) {
	switch {
	case f.Dir:
		return f, os.MkdirAll(to, f.Mode|0o700)
	case f.Link != "":
		return f, os.Symlink(f.Link, to)
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, f.Mode|0o200)
	if err != nil {
		return f, err
	}
	f.Size, f.SHA256, err = copyTo(out, from)
	if err == nil {
		err = out.Sync()
	}
	return f, errors.Join(err, out.Close())
}

func copyTo(w io.Writer, path string) (size int64, sum string, err error) {
	in, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = in.Close() }()
	h := sha256.New()
	size, err = io.Copy(io.MultiWriter(w, h), in)
	return size, hex.EncodeToString(h.Sum(nil)), err
}

// lock takes a lock file; where there is none, nobody can hold it.
func lock(path string) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s: %w", path, ErrInUse)
	}
	return func() { _ = f.Close() }, nil
}

func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("%s: %w", dir, ErrNotEmpty)
	}
	return err
}

// writeWhole makes a file that is there whole or not at all, also after a power cut.
func writeWhole(path string, raw []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
