package artifact

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestBytesComeBackUnderTheirDigest(t *testing.T) {
	s := open(t)
	d, err := s.PutBytes([]byte("abc"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; d != want { // FIPS 180-2, appendix B.1
		t.Errorf("digest %s", d)
	}
	if b, err := s.Bytes(d); err != nil || string(b) != "abc" {
		t.Errorf("%q %v", b, err)
	}
	if _, err := s.Bytes(strings.Repeat("0", 64)); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown digest: %v", err)
	}
	if _, err := s.Bytes("../../etc/passwd"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a digest that is a path: %v", err)
	}
}

func TestDigestOfAFolderIsItsContent(t *testing.T) {
	a := folder(t, map[string]string{"x.json": "1", "sub/y.bin": "2"})
	b := folder(t, map[string]string{"sub/y.bin": "2", "x.json": "1"})
	c := folder(t, map[string]string{"sub/y.bin": "1", "x.json": "2"})
	da, err := DigestDir(a)
	if err != nil {
		t.Fatal(err)
	}
	if db, _ := DigestDir(b); db != da {
		t.Error("the same files have two digests")
	}
	if dc, _ := DigestDir(c); dc == da {
		t.Error("other files have the same digest")
	}
	if err := os.Symlink("x.json", filepath.Join(a, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := DigestDir(a); err == nil {
		t.Error("a link was taken into an artifact")
	}
}

func TestVerifyFindsDamage(t *testing.T) {
	s := open(t)
	d, err := s.PutDir(folder(t, map[string]string{"x": "1"}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(d); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Path(d), "x"), []byte("2"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(d); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v", err)
	}
}

func TestManyWritersOfOneArtifact(t *testing.T) {
	s := open(t)
	src := folder(t, map[string]string{"x": "1", "y/z": "2"})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := s.PutDir(src); err != nil {
				t.Error(err)
			}
			if _, err := s.PutBytes([]byte("same")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	left, err := os.ReadDir(filepath.Join(s.dir, "tmp"))
	if err != nil || len(left) != 0 {
		t.Errorf("temporary files stay behind: %v %v", left, err)
	}
}
