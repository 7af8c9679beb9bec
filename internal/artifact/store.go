// Package artifact is the content-addressed store in which creatives, datasets and models live: what is in
// it is immutable, and a digest names it for good. The store is a folder; writing is atomic (temporary name,
// fsync, rename), so that a crash leaves either the whole artifact or none.
package artifact

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// ErrNotFound is returned for a digest that the store does not hold.
var ErrNotFound = errors.New("artifact not found")

// ErrCorrupt is returned by Verify when content and digest differ.
var ErrCorrupt = errors.New("artifact does not match its digest")

// Store is a folder of artifacts, objects/<first two digits>/<digest>. It is safe for concurrent use, by
// several processes too.
type Store struct{ dir string }

// Open creates the folder if need be.
func Open(dir string) (*Store, error) {
	for _, d := range []string{"objects", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("open artifact store: %w", err)
		}
	}
	return &Store{dir: dir}, nil
}

// Path is where the artifact of that digest lies, whether or not it is there.
func (s *Store) Path(digest string) string {
	if len(digest) != 64 || strings.Trim(digest, "0123456789abcdef") != "" {
		return filepath.Join(s.dir, "objects", "invalid")
	}
	return filepath.Join(s.dir, "objects", digest[:2], digest)
}

// Has says whether the store holds the artifact.
func (s *Store) Has(digest string) bool {
	_, err := os.Stat(s.Path(digest))
	return err == nil
}

// Find returns the digests that begin with prefix, two hex digits or more, in order.
func (s *Store) Find(prefix string) ([]string, error) {
	if len(prefix) < 2 || strings.Trim(prefix, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("%w: %q is not the beginning of a digest (two hex digits or more)", ErrNotFound, prefix)
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, "objects", prefix[:2]))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("find artifact: %w", err)
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// PutBytes stores a file's content and returns its digest: SHA-256, 64 hex digits.
func (s *Store) PutBytes(b []byte) (string, error) {
	sum := sha256.Sum256(b)
	digest := hex.EncodeToString(sum[:])
	if s.Has(digest) {
		return digest, nil
	}
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "put-*")
	if err != nil {
		return "", fmt.Errorf("store artifact: %w", err)
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(b); err != nil {
		_ = f.Close()
		return "", fmt.Errorf("store artifact: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return "", fmt.Errorf("store artifact: %w", err)
	}
	return digest, s.place(f.Name(), digest)
}

// Bytes reads a single-file artifact.
func (s *Store) Bytes(digest string) ([]byte, error) {
	b, err := os.ReadFile(s.Path(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, digest)
	}
	return b, err
}

// PutDir stores a copy of a folder of regular files and returns its digest (see DigestDir).
func (s *Store) PutDir(src string) (string, error) {
	digest, err := DigestDir(src)
	if err != nil {
		return "", err
	}
	if s.Has(digest) {
		return digest, nil
	}
	tmp, err := os.MkdirTemp(filepath.Join(s.dir, "tmp"), "put-*")
	if err != nil {
		return "", fmt.Errorf("store artifact: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := os.CopyFS(tmp, os.DirFS(src)); err != nil {
		return "", fmt.Errorf("store artifact %s: %w", src, err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil { // MkdirTemp's 0700 would hide it from a model server under another user
		return "", fmt.Errorf("store artifact: %w", err)
	}
	return digest, s.place(tmp, digest)
}

// Verify reads the artifact again and compares it with its digest.
func (s *Store) Verify(digest string) error {
	p := s.Path(digest)
	fi, err := os.Stat(p)
	if err != nil {
		return fmt.Errorf("%w: %s", ErrNotFound, digest)
	}
	var got string
	if fi.IsDir() {
		if got, err = DigestDir(p); err != nil {
			return err
		}
	} else {
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		got = hex.EncodeToString(sum[:])
	}
	if got != digest {
		return fmt.Errorf("%w: %s has the content of %s", ErrCorrupt, digest, got)
	}
	return nil
}

func (s *Store) place(tmp, digest string) error {
	dst := s.Path(digest)
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return fmt.Errorf("store artifact: %w", err)
	}
	// Two writers of one digest write the same content: whoever comes second finds it there.
	if err := os.Rename(tmp, dst); err != nil && !s.Has(digest) {
		return fmt.Errorf("store artifact: %w", err)
	}
	return nil
}

// DigestDir is the digest of a folder: SHA-256 over "<file digest>  <slash path>\n" of every regular file,
// sorted by path. Links and special files are an error: an artifact must mean the same everywhere.
func DigestDir(dir string) (string, error) {
	var lines []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%s is not a regular file", rel)
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		lines = append(lines, fmt.Sprintf("%x  %s\n", h.Sum(nil), filepath.ToSlash(rel)))
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("digest of folder %s: %w", dir, err)
	}
	sort.Slice(lines, func(i, j int) bool { return lines[i][66:] < lines[j][66:] })
	sum := sha256.Sum256([]byte(strings.Join(lines, "")))
	return hex.EncodeToString(sum[:]), nil
}
