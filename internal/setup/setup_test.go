package setup

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// world is a machine with an empty home folder and fake package clients as its whole PATH.
type world struct {
	home, bin string
	pin       pin
	tarball   string // a good package
	log       bytes.Buffer
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{home: filepath.Join(t.TempDir(), "home"), bin: t.TempDir()}
	content := []byte("the engine")
	w.tarball = filepath.Join(t.TempDir(), "engine-1.tgz")
	packed := pack(t, "package/libengine.so", content)
	write(t, w.tarball, packed, 0o644)
	sum, tgz := sha256.Sum256(content), sha512.Sum512(packed)
	w.pin = pin{
		pkg: "engine", version: "1", member: "package/libengine.so",
		tarballSHA512: hex.EncodeToString(tgz[:]), tarballBytes: int64(len(packed)),
		fileSHA256: hex.EncodeToString(sum[:]), fileBytes: int64(len(content)),
	}
	if err := os.MkdirAll(w.home, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", w.bin)
	t.Setenv("LIBCHDB", "")
	t.Setenv("CTRLOOP_PYTHON", "")
	return w
}

func pack(t *testing.T, name string, content []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	zipped := gzip.NewWriter(&buf)
	archive := tar.NewWriter(zipped)
	for member, body := range map[string][]byte{"package/package.json": []byte("{}"), name: content} {
		if err := archive.WriteHeader(&tar.Header{Name: member, Mode: 0o644, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(archive.Close(), zipped.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func write(t *testing.T, path string, content []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, content, mode); err != nil {
		t.Fatal(err)
	}
}

// program puts a fake client on the PATH.
func (w *world) program(t *testing.T, name, script string) {
	t.Helper()
	write(t, filepath.Join(w.bin, name), []byte("#!/bin/sh\nexport PATH=/usr/bin:/bin\n"+script), 0o755)
}

func (w *world) options() Options {
	return Options{Home: w.home, Progress: &w.log}
}

// npm returns a script for `npm pack --pack-destination DIR`, with the folder in $d; it counts its calls.
func (w *world) npm(body string) string {
	return `echo call >> "` + w.bin + `/npm.calls"
while [ $# -gt 0 ]; do [ "$1" = --pack-destination ] && d=$2; shift; done
` + body
}

func (w *world) calls(t *testing.T, name string) int {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(w.bin, name+".calls"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return bytes.Count(raw, []byte("\n"))
}

func TestLibraryIsFetchedOnce(t *testing.T) {
	w := newWorld(t)
	w.program(t, "npm", w.npm(`cp "`+w.tarball+`" $d/engine-1.tgz; echo engine-1.tgz`))
	for range 2 {
		if err := w.pin.ensure(t.Context(), w.options()); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(w.pin.path(w.home))
	if err != nil || string(got) != "the engine" {
		t.Errorf("the library holds %q, %v", got, err)
	}
	if n := w.calls(t, "npm"); n != 1 {
		t.Errorf("npm was called %d times", n)
	}
	assertFolder(t, filepath.Dir(w.pin.path(w.home)), "libengine.so")
}

// assertFolder fails unless the folder holds exactly these names: nothing unfinished is left.
func assertFolder(t *testing.T, folder string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%s holds %v, want %v", folder, got, want)
	}
}

func TestLibraryFailures(t *testing.T) {
	for name, test := range map[string]struct{ npm, want, hint string }{
		"npm fails":          {`echo "404 Not Found" >&2; exit 1`, "404 Not Found", "npm pack engine@1"},
		"npm names no file":  {`exit 0`, "named no file", "run it again"},
		"truncated download": {`head -c 40 "$TARBALL" > $d/engine-1.tgz; echo engine-1.tgz`, "truncated or altered", "run it again"},
		"no npm":             {"", "npm, which is not on the PATH", "--libchdb-tarball"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			t.Setenv("TARBALL", w.tarball)
			if test.npm != "" {
				w.program(t, "npm", w.npm(test.npm))
			}
			err := w.pin.ensure(t.Context(), w.options())
			assertError(t, err, test.want, test.hint)
			if _, err := os.Stat(w.pin.path(w.home)); err == nil {
				t.Error("a library was left behind")
			}
			// A later attempt with a working client succeeds.
			w.program(t, "npm", w.npm(`cp "$TARBALL" $d/engine-1.tgz; echo engine-1.tgz`))
			if err := w.pin.ensure(t.Context(), w.options()); err != nil {
				t.Errorf("second attempt: %v", err)
			}
		})
	}
}

// assertError fails unless the error and its hint say these.
func assertError(t *testing.T, err error, want, hint string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Fatalf("error %v, want %q", err, want)
	}
	var hinter interface{ Hint() string }
	if !errors.As(err, &hinter) || !strings.Contains(hinter.Hint(), hint) {
		t.Errorf("%v has no hint with %q", err, hint)
	}
}

func TestLibraryWithAnotherContentIsRefused(t *testing.T) {
	w := newWorld(t)
	evil := pack(t, "package/libengine.so", []byte("something else entirely"))
	sum := sha512.Sum512(evil)
	w.pin.tarballSHA512 = hex.EncodeToString(sum[:]) // the package is the pinned one, the library in it is not
	write(t, w.tarball, evil, 0o644)
	opts := w.options()
	opts.LibraryTarball = w.tarball
	err := w.pin.ensure(t.Context(), opts)
	if err == nil || !strings.Contains(err.Error(), "has sha256") {
		t.Errorf("error %v", err)
	}
	assertFolder(t, filepath.Dir(w.pin.path(w.home)), "download")
}

func TestLibraryFromALocalTarball(t *testing.T) {
	w := newWorld(t) // with no npm at all
	opts := w.options()
	opts.LibraryTarball = w.tarball
	if err := w.pin.ensure(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	opts.LibraryTarball = filepath.Join(w.bin, "none.tgz")
	write(t, w.pin.path(w.home), []byte("the engimm"), 0o755) // same size, other bytes
	assertError(t, w.pin.ensure(t.Context(), opts), "no such file", "npm pack")
	opts.LibraryTarball = w.tarball
	if err := w.pin.ensure(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(w.pin.path(w.home)); string(got) != "the engine" {
		t.Errorf("a damaged library was not repaired: %q", got)
	}
}

// TestSetupKilledAfterTheDownload leaves a verified package behind; the next run uses it.
func TestSetupKilledAfterTheDownload(t *testing.T) {
	w := newWorld(t)
	downloads := filepath.Join(filepath.Dir(w.pin.path(w.home)), "download")
	if err := os.MkdirAll(downloads, 0o755); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(w.tarball)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(downloads, "a.tgz"), good[:20], 0o644)
	write(t, filepath.Join(downloads, "b.tgz"), good, 0o644)
	if err := w.pin.ensure(t.Context(), w.options()); err != nil { // there is no npm to call
		t.Fatal(err)
	}
}

func TestInterruptedDownloadStopsTheClient(t *testing.T) {
	w := newWorld(t)
	w.program(t, "npm", w.npm(`touch "`+w.bin+`/started"; sleep 60`))
	ctx, cancel := context.WithCancel(t.Context())
	context.AfterFunc(waitFile(t, filepath.Join(w.bin, "started")), cancel)
	err := w.pin.ensure(ctx, w.options())
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// waitFile returns a context that is done once the file exists.
func waitFile(t *testing.T, path string) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		for ctx.Err() == nil {
			if _, err := os.Stat(path); err == nil {
				return
			}
			runtime.Gosched()
		}
	}()
	return ctx
}

func TestUnwritableHome(t *testing.T) {
	w := newWorld(t)
	blocked := filepath.Join(w.home, "file")
	write(t, blocked, nil, 0o644) // a file where a folder must be: it fails for root too
	opts := w.options()
	opts.Home = filepath.Join(blocked, "home")
	assertError(t, Run(t.Context(), opts), "cannot make the folder", "CTRLOOP_HOME")
	opts.Home = blocked
	assertError(t, w.pin.ensure(t.Context(), opts), "cannot make the engine's folder", "CTRLOOP_HOME")
}

func TestLibraryPathOverride(t *testing.T) {
	w := newWorld(t)
	t.Setenv("LIBCHDB", w.tarball)
	if got, err := Library(w.home); err != nil || got != w.tarball {
		t.Errorf("%q, %v", got, err)
	}
	t.Setenv("LIBCHDB", filepath.Join(w.bin, "gone"))
	_, err := Library(w.home)
	assertError(t, err, "no such file", "LIBCHDB")
}

func TestMissingNamesTheCommand(t *testing.T) {
	w := newWorld(t)
	_, err := Python(w.home, []byte("lock"))
	assertError(t, err, "Python environment is not set up", "ctrloop setup")
	if _, known := engines[platform]; !known {
		t.Skip("the engine is not published for " + platform)
	}
	_, err = Library(w.home)
	assertError(t, err, "ClickHouse engine is not set up", "178 MB")
	var missing *MissingError
	if !errors.As(err, &missing) || missing.ExitCode() != 3 {
		t.Errorf("exit code of %v", err)
	}
	items := Check(Options{Home: w.home, Lock: []byte("lock"), NoKafka: true})
	if len(items) != 2 || items[0].Present || items[1].Present || items[1].DownloadBytes == 0 {
		t.Errorf("items %+v", items)
	}
	items = Check(Options{Home: w.home, Lock: []byte("lock"), NoEngine: true, NoKafka: true})
	if len(items) != 1 || items[0].Name != pythonName {
		t.Errorf("without the engine: items %+v", items)
	}
}

// TestWithoutTheEngine: nothing of it is fetched, nor looked for, where the warehouse is given by address.
func TestWithoutTheEngine(t *testing.T) {
	w := newWorld(t)
	w.program(t, "npm", w.npm("exit 1"))
	opts := w.options()
	opts.NoEngine, opts.NoKafka, opts.Lock = true, true, nil
	if err := Run(t.Context(), opts); err != nil || w.calls(t, "npm") != 0 {
		t.Errorf("%v, npm was called %d times", err, w.calls(t, "npm"))
	}
}

func TestASecondSetupWaits(t *testing.T) {
	w := newWorld(t)
	unlock, err := lockHome(t.Context(), w.home, &w.log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	waiting := writerFunc(func(p []byte) {
		if bytes.Contains(p, []byte("another")) {
			cancel()
		}
	})
	if _, err := lockHome(ctx, w.home, waiting); !errors.Is(err, context.Canceled) {
		t.Errorf("the lock was not held: %v", err)
	}
	unlock()
	again, err := lockHome(t.Context(), w.home, &w.log)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// fakePython is a python3 whose environments hold a python that records its arguments and runs $PIP.
const fakePython = `
case "$1" in
-c) echo "${VERSION:-3.12} $0"; exit ;;
-m) [ "$2" = venv ] && { mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit; }
    echo "$@" >> "$CALLS"; eval "$PIP" ;;
esac
`

func TestPythonEnvironment(t *testing.T) {
	for name, test := range map[string]struct {
		uv, pip, version string
		want, hint       string // of the error; "" is success
		calls            int    // of pip
	}{
		"uv on the path":           {uv: "exit 0", calls: 0},
		"uv fails, pip works":      {uv: `[ "$1" = venv ] || exit 1; exit 0`, pip: "exit 0", calls: 1},
		"no uv: bootstrapped":      {pip: `case "$*" in *--no-deps*) cp "$UV" "${0%/*}/uv";; esac`, calls: 1},
		"no uv and none to be had": {pip: `case "$*" in *quiet*) echo no route >&2; exit 1;; esac`, calls: 2},
		"nothing works": {pip: "echo hashes do not match >&2; exit 1", want: "hashes do not match",
			hint: "run `ctrloop setup` again", calls: 2},
		"Python too old":                  {version: "3.9", want: "(is 3.9)", hint: "CTRLOOP_PYTHON"},
		"a broken python3 is not a crash": {version: "garbage", want: "no Python 3.11 or newer", hint: "install Python"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			calls := filepath.Join(w.bin, "python.calls")
			t.Setenv("CALLS", calls)
			t.Setenv("PIP", test.pip)
			t.Setenv("VERSION", test.version)
			w.program(t, "python3", fakePython)
			uvBody := "#!/bin/sh\nPATH=/usr/bin:/bin\n" +
				`if [ "$1" = venv ]; then for d; do :; done; mkdir -p $d/bin; ln -s /bin/sh $d/bin/python; fi` + "\n" + test.uv + "\n"
			uv := filepath.Join(t.TempDir(), "uv")
			write(t, uv, []byte(uvBody), 0o755)
			t.Setenv("UV", uv)
			if test.uv != "" {
				write(t, filepath.Join(w.bin, "uv"), []byte(uvBody), 0o755)
			}
			opts := w.options()
			opts.Lock = []byte("numpy==1 --hash=sha256:00\n")
			err := ensurePython(t.Context(), opts)
			if n := w.calls(t, "python"); n != test.calls {
				t.Errorf("pip was called %d times, want %d", n, test.calls)
			}
			if test.want != "" {
				assertError(t, err, test.want, test.hint)
				if _, err := Python(w.home, opts.Lock); err == nil {
					t.Error("a failed set-up left an environment that counts")
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, &w.log)
			}
			python, err := Python(w.home, opts.Lock)
			if err != nil {
				t.Fatal(err)
			}
			if err := ensurePython(t.Context(), opts); err != nil || w.calls(t, "python") != test.calls {
				t.Errorf("a second set-up did something: %v", err)
			}
			if _, err := Python(w.home, []byte("another lock")); err == nil {
				t.Error("another lock got the same environment")
			}
			if err := os.Remove(python); err != nil {
				t.Fatal(err)
			}
			if _, err := Python(w.home, opts.Lock); err == nil {
				t.Error("an environment whose interpreter is gone counts")
			}
		})
	}
}

// TestPythonKilledMidway leaves an environment without its marker; it is built anew.
func TestPythonKilledMidway(t *testing.T) {
	w := newWorld(t)
	w.program(t, "python3", fakePython)
	w.program(t, "uv", `[ "$1" = venv ] && { for d; do :; done; mkdir -p $d/bin; ln -s /bin/sh $d/bin/python; }; exit 0`)
	opts := w.options()
	opts.Lock = []byte("lock")
	folder := pythonFolder(w.home, opts.Lock)
	if err := os.MkdirAll(filepath.Join(folder, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(folder, "bin", "python"), nil, 0o755)
	write(t, filepath.Join(folder, "half-a-package"), nil, 0o644)
	if _, err := Python(w.home, opts.Lock); err == nil {
		t.Fatal("an unfinished environment counts")
	}
	if err := ensurePython(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(folder, "half-a-package")); err == nil {
		t.Error("the unfinished environment was built upon")
	}
}

func TestTheUVPinIsHashed(t *testing.T) {
	if n := bytes.Count(uvLock, []byte("--hash=sha256:")); n < 10 || !bytes.Contains(uvLock, []byte("uv==")) {
		t.Errorf("%d hashes in:\n%s", n, uvLock)
	}
}
