package snapshot

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// folder makes a small tree with everything that a store has.
func folder(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "src")
	for _, d := range []string{"store/a", "meta", "empty"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o700))
	}
	must(t, os.WriteFile(filepath.Join(dir, "store/a/data.bin"), []byte("rows"), 0o640))
	must(t, os.WriteFile(filepath.Join(dir, "secret"), []byte("password"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "lock"), nil, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "run.json"), []byte("{}"), 0o600))
	must(t, os.Symlink("../store/a", filepath.Join(dir, "meta", "a")))
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tree is every path with its mode and content or target.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			out[name] = "dir"
		case info.Mode()&fs.ModeSymlink != 0:
			out[name], err = os.Readlink(path)
		default:
			var raw []byte
			raw, err = os.ReadFile(path)
			out[name] = info.Mode().String() + " " + string(raw)
		}
		return err
	}))
	return out
}

func TestThereAndBack(t *testing.T) {
	src, dst := folder(t), filepath.Join(t.TempDir(), "backup")
	release, err := Lock(filepath.Join(src, "lock"), filepath.Join(src, "none"))
	must(t, err)
	m, err := Write(t.Context(), dst, []Source{{Dir: src, Skip: []string{"run.json"}}}, "v1")
	must(t, err)
	release()
	if m.Bytes() != int64(len("rows")+len("password")) || m.Version != "v1" {
		t.Errorf("manifest %+v", m)
	}
	back := filepath.Join(t.TempDir(), "back")
	must(t, os.MkdirAll(back+".restoring/rest", 0o700)) // of a restore that was killed
	_, err = Restore(t.Context(), dst, back)
	must(t, err)
	want := tree(t, src)
	delete(want, "run.json")
	if diff := cmp.Diff(want, tree(t, back)); diff != "" {
		t.Error(diff)
	}
	if _, err := Restore(t.Context(), dst, back); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("into a folder that holds something: %v", err)
	}
	if _, err := Write(t.Context(), dst, []Source{{Dir: src}}, ""); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("over another backup: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	src := folder(t)
	release, err := lock(filepath.Join(src, "lock"))
	must(t, err)
	if _, err := Lock(filepath.Join(src, "lock")); !errors.Is(err, ErrInUse) {
		t.Errorf("while something runs: %v", err)
	}
	release()
	if _, err := Write(t.Context(), filepath.Join(src, "meta", "backup"), []Source{{Dir: src}}, ""); !errors.Is(err, ErrInside) {
		t.Errorf("a backup inside of its source: %v", err)
	}
	for name, damage := range map[string]func(dir string) (error, error){
		"no manifest":  func(dir string) (error, error) { return os.Remove(filepath.Join(dir, ManifestName)), ErrIncomplete },
		"cut manifest": func(dir string) (error, error) { return os.Truncate(filepath.Join(dir, ManifestName), 20), ErrDamaged },
		"missing file": func(dir string) (error, error) { return os.Remove(filepath.Join(dir, Data, "secret")), ErrDamaged },
		"another byte": func(dir string) (error, error) {
			return os.WriteFile(filepath.Join(dir, Data, "secret"), []byte("passwort"), 0o600), ErrDamaged
		},
		"way out": func(dir string) (error, error) {
			return os.WriteFile(filepath.Join(dir, ManifestName), []byte(`{"files":[{"path":"../x"}]}`), 0o600), ErrDamaged
		},
		"link leads out": func(dir string) (error, error) {
			return os.WriteFile(filepath.Join(dir, ManifestName), []byte(`{"files":[{"path":"x","link":"../../etc"}]}`), 0o600), ErrDamaged
		},
	} {
		dst := filepath.Join(t.TempDir(), "backup")
		_, err := Write(t.Context(), dst, []Source{{Dir: src}}, "")
		must(t, err)
		failed, want := damage(dst)
		must(t, failed)
		back := filepath.Join(t.TempDir(), "back")
		if _, err := Restore(t.Context(), dst, back); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		if _, err := os.Stat(back); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: something was restored", name)
		}
	}
}

// A snapshot of several folders, some of which are being written to.
func TestSourcesTogether(t *testing.T) {
	src, links := folder(t), t.TempDir()
	must(t, os.MkdirAll(filepath.Join(links, "b"), 0o700))
	must(t, os.WriteFile(filepath.Join(links, "b", "log"), []byte("now and later"), 0o600))
	dst, back := filepath.Join(t.TempDir(), "backup"), filepath.Join(t.TempDir(), "back")
	_, err := Write(t.Context(), dst, []Source{
		{Dir: src, Only: []string{"store/a/data.bin", "gone"}, Live: true},
		{Dir: links, As: "store", Sizes: map[string]int64{"b/log": 3}},
	}, "")
	must(t, err)
	_, err = Restore(t.Context(), dst, back)
	must(t, err)
	want := map[string]string{
		".":                "dir",
		"store":            "dir",
		"store/a":          "dir",
		"store/b":          "dir",
		"store/a/data.bin": "-rw-r----- rows",
		"store/b/log":      "-rw------- now",
	}
	if diff := cmp.Diff(want, tree(t, back)); diff != "" {
		t.Error(diff)
	}
	for name, s := range map[string]Source{
		"missing":   {Dir: src, Only: []string{"gone"}},
		"too short": {Dir: src, Sizes: map[string]int64{"secret": 100}},
	} {
		if _, err := Write(t.Context(), filepath.Join(t.TempDir(), "b"), []Source{s}, ""); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
