// Package snapshot copies folders with a manifest of checksums, and brings them back. The manifest is
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
	"math"
	"os"
	pathpkg "path"
	"path/filepath"
	"slices"
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
	ErrInside     = errors.New("the backup would be inside of what it is to hold")
)

// Source is a folder that goes into a snapshot, or a part of one.
type Source struct {
	Dir  string
	As   string   // where it goes inside of the snapshot, with slashes; empty: the top
	Only []string // paths inside of Dir, files and folders, that belong to the snapshot; nil: everything
	Skip []string // paths inside of Dir that do not
	// Sizes of files that something goes on appending to, by path inside of Dir: how many of the first bytes belong to the
	// snapshot, 0 or more. Other files belong to it as they are.
	Sizes map[string]int64
	// Live folders change while they are copied: what is gone when its turn comes is left out.
	Live bool
}

// Write copies sources to dst, which must be empty or missing, and outside of them.
func Write(ctx context.Context, dst string, sources []Source, version string) (m Manifest, err error) {
	if err := empty(dst); err != nil {
		return m, err
	}
	m = Manifest{Created: time.Now().UTC().Truncate(time.Second), Version: version}
	listed := map[string]bool{}
	for _, s := range sources {
		if err := s.outside(dst); err != nil {
			return m, err
		}
		if err := s.write(ctx, dst, &m, listed); err != nil {
			return m, fmt.Errorf("copy %s: %w", s.Dir, err)
		}
	}
	raw, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return m, err
	}
	return m, writeWhole(filepath.Join(dst, ManifestName), raw)
}

// outside refuses a snapshot inside of what it is to hold: it would hold itself.
func (s Source) outside(dst string) error {
	src, err := filepath.Abs(s.Dir)
	if err != nil {
		return err
	}
	if dst, err = filepath.Abs(dst); err != nil {
		return err
	}
	if name, err := filepath.Rel(src, dst); err == nil && filepath.IsLocal(name) {
		return fmt.Errorf("%s: %w, %s: choose a folder beside it", dst, ErrInside, src)
	}
	return nil
}

// write adds one source; folders that an earlier one has listed are not listed again.
func (s Source) write(ctx context.Context, dst string, m *Manifest, listed map[string]bool) error {
	roots := s.Only
	if roots == nil {
		roots = []string{"."}
	}
	gone := func(err error) bool { return s.Live && errors.Is(err, fs.ErrNotExist) }
	for _, root := range roots {
		err := filepath.WalkDir(filepath.Join(s.Dir, filepath.FromSlash(root)), func(path string, d fs.DirEntry, err error) error {
			if gone(err) {
				return nil
			}
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return err
			}
			name, err := filepath.Rel(s.Dir, path)
			if err != nil {
				return err
			}
			if slices.Contains(s.Skip, filepath.ToSlash(name)) {
				if d.IsDir() {
					return filepath.SkipDir
				}
				return nil
			}
			f, err := describe(s.Dir, name, d)
			if gone(err) {
				return nil
			}
			if err != nil {
				return err
			}
			size, cut := s.Sizes[f.Path]
			if !cut {
				size = math.MaxInt64
			}
			f.Path = pathpkg.Join(s.As, f.Path)
			f, err = put(f, path, filepath.Join(dst, Data, filepath.FromSlash(f.Path)), size)
			if gone(err) {
				return nil
			}
			if err != nil {
				return err
			}
			if cut && f.Size != size {
				return fmt.Errorf("%s has %d bytes where %d were promised", path, f.Size, size)
			}
			if f.Path != "." && !listed[f.Path] {
				m.Files = append(m.Files, f)
				listed[f.Path] = true
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
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
		size, sum, err := copyTo(io.Discard, filepath.Join(dir, Data, filepath.FromSlash(f.Path)), math.MaxInt64)
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
		got, err := put(f, filepath.Join(dir, Data, name), filepath.Join(partial, name), math.MaxInt64)
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

// put makes one folder, link or file, of which it takes at most the first bytes, and fills in its checksum.
func put(f File, from, to string, most int64) (File, error) {
	if f.Dir {
		return f, os.MkdirAll(to, f.Mode|0o700)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return f, err
	}
	if f.Link != "" {
		return f, os.Symlink(f.Link, to)
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, f.Mode|0o200)
	if err != nil {
		return f, err
	}
	f.Size, f.SHA256, err = copyTo(out, from, most)
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		_ = os.Remove(to) // no file rather than a part of one
	}
	return f, err
}

func copyTo(w io.Writer, path string, most int64) (size int64, sum string, err error) {
	in, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = in.Close() }()
	h := sha256.New()
	size, err = io.Copy(io.MultiWriter(w, h), io.LimitReader(in, most))
	return size, hex.EncodeToString(h.Sum(nil)), err
}

// Lock takes files that running programs hold by flock, so that none of them starts while a folder is copied. It fails with
// ErrInUse where one runs. A file that is not there is not locked: no program can hold it.
func Lock(paths ...string) (release func(), err error) {
	var held []func()
	release = func() {
		for _, r := range held {
			r()
		}
	}
	for _, path := range paths {
		r, err := lock(path)
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, r)
	}
	return release, nil
}

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
