package setup

import (
	"bytes"
	"context"
	_ "embed" // the pinned installer
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"ctrloop/internal/process"

	"github.com/rs/zerolog"
)

// uvLock pins uv, the installer that is bootstrapped where there is none on the PATH: one wheel, hashed.
//
//go:embed uv.txt
var uvLock []byte

const (
	pythonName = "Python environment"
	// minPythonMinor is the oldest Python 3 that the packages of the lock support.
	minPythonMinor = 11
	// pythonDownloadBytes and pythonDiskBytes are measured on Linux x86-64, where PyTorch's wheels from PyPI bring
	// the CUDA libraries along; other platforms take less.
	pythonDownloadBytes = 3_130_000_000
	pythonDiskBytes     = 5_900_000_000
	// marker is written into an environment when it is complete.
	marker = ".ctrloop-complete"
)

// Python returns the interpreter of the environment that the lock pins, or a [*MissingError].
func Python(home string, lock []byte) (string, error) {
	folder := pythonFolder(home, lock)
	python := filepath.Join(folder, "bin", "python")
	_, errMarker := os.Stat(filepath.Join(folder, marker))
	_, errPython := os.Stat(python) // follows the link: fails where the interpreter behind it was removed
	if errMarker != nil || errPython != nil {
		return "", &MissingError{What: pythonName, Path: python, DownloadBytes: pythonDownloadBytes}
	}
	return python, nil
}

// pythonFolder is where the environment of a lock lives: another lock is another folder, so that an update never
// changes an environment in use.
func pythonFolder(home string, lock []byte) string { return lockedFolder(home, "python", lock) }

func pythonItem(home string, lock []byte) Item {
	item := Item{Name: pythonName, Path: pythonFolder(home, lock)}
	if _, err := Python(home, lock); err == nil {
		item.Present = true
		return item
	}
	item.DownloadBytes, item.DiskBytes = pythonDownloadBytes, pythonDiskBytes
	return item
}

// ensurePython builds the environment unless it is complete.
func ensurePython(ctx context.Context, opts Options) error {
	if _, err := Python(opts.Home, opts.Lock); err == nil {
		return nil
	}
	return ensureEnvironment(ctx, opts, pythonName, pythonFolder(opts.Home, opts.Lock), opts.Lock)
}

// ensureEnvironment makes an environment of what a lock pins.
func ensureEnvironment(ctx context.Context, opts Options, name, folder string, lock []byte) error {
	begin := time.Now()
	b := builder{home: opts.Home, folder: folder, out: opts.Progress, lockFile: folder + ".txt"}
	if err := os.MkdirAll(filepath.Dir(b.folder), 0o755); err != nil {
		return failed("set CTRLOOP_HOME to a folder that you can write", "cannot make the folder of %s: %w", name, err)
	}
	if err := os.WriteFile(b.lockFile, lock, 0o644); err != nil {
		return fmt.Errorf("write the lock of %s: %w", name, err)
	}
	var err error
	if b.base, err = findPython(ctx); err != nil {
		return err
	}
	if err := b.build(ctx); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.folder, marker), []byte(b.base+"\n"), 0o644); err != nil {
		return fmt.Errorf("mark %s as complete: %w", name, err)
	}
	fmt.Fprintf(opts.Progress, "done   %s in %.0f s\n", name, time.Since(begin).Seconds())
	return nil
}

// findPython returns the path of a Python that is new enough: CTRLOOP_PYTHON, or the first fitting one on the PATH.
func findPython(ctx context.Context) (string, error) {
	names := []string{"python3", "python3.13", "python3.12", "python3.11", "python"}
	if given := os.Getenv("CTRLOOP_PYTHON"); given != "" {
		names = []string{given}
	}
	var tried []string
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		// sys.executable: the interpreter itself where the name is a version manager's script.
		out, err := exec.CommandContext(ctx, path, "-c", "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)").Output()
		if err != nil {
			tried = append(tried, path+" (does not run)")
			continue
		}
		version, executable, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
		minor, err := strconv.Atoi(strings.TrimPrefix(version, "3."))
		if err == nil && minor >= minPythonMinor && executable != "" {
			return executable, nil
		}
		tried = append(tried, fmt.Sprintf("%s (is %s)", path, version))
	}
	if len(tried) == 0 {
		tried = []string{"nothing named " + strings.Join(names, ", ")}
	}
	return "", failed(fmt.Sprintf("install Python 3.%d or newer, or set CTRLOOP_PYTHON to one", minPythonMinor),
		"no Python 3.%d or newer; found: %s", minPythonMinor, strings.Join(tried, ", "))
}

// builder makes one environment.
type builder struct {
	home, folder string
	lockFile     string
	base         string // the interpreter it is made from
	out          io.Writer
}

// build makes the environment with uv, which downloads in parallel; where uv cannot be had, or fails (it does not
// read pip's settings, so a mirror configured for pip only is unknown to it), with plain pip.
func (b *builder) build(ctx context.Context) error {
	uv, err := b.findUV(ctx)
	if err == nil {
		fmt.Fprintf(b.out, "fetch  packages with %s\n", uv)
		if err = b.withUV(ctx, uv); err == nil {
			return nil
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("set up %s: %w", b.folder, err)
	}
	fmt.Fprintf(b.out, "retry  packages with pip, because: %v\n", err)
	if errPip := b.withPip(ctx); errPip != nil {
		return failed("correct the cause and run `ctrloop setup` again; packages downloaded so far are in the installer's cache",
			"set up %s: %w", b.folder, errors.Join(err, errPip))
	}
	return nil
}

// findUV returns uv from the PATH, or bootstraps the pinned one into an environment of its own.
func (b *builder) findUV(ctx context.Context) (string, error) {
	if path, err := exec.LookPath("uv"); err == nil {
		return path, nil
	}
	folder := pythonFolder(b.home, uvLock)
	uv := filepath.Join(folder, "bin", "uv")
	if _, err := os.Stat(filepath.Join(folder, marker)); err == nil {
		return uv, nil
	}
	fmt.Fprintf(b.out, "fetch  uv, the Python installer, with pip, about 20 MB\n")
	lockFile := folder + ".txt"
	if err := os.WriteFile(lockFile, uvLock, 0o644); err != nil {
		return "", err
	}
	if err := b.venv(ctx, folder); err != nil {
		return "", err
	}
	if err := b.run(ctx, filepath.Join(folder, "bin", "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r",
		lockFile); err != nil {
		return "", err
	}
	return uv, os.WriteFile(filepath.Join(folder, marker), nil, 0o644)
}

func (b *builder) withUV(ctx context.Context, uv string) error {
	if err := os.RemoveAll(b.folder); err != nil {
		return fmt.Errorf("remove an unfinished environment: %w", err)
	}
	if err := b.run(ctx, uv, "venv", "--quiet", "--no-project", "--python", b.base, b.folder); err != nil {
		return err
	}
	return b.run(ctx, uv, "pip", "install", "--no-progress", "--python", filepath.Join(b.folder, "bin", "python"),
		"--require-hashes", "--no-deps", "-r", b.lockFile)
}

func (b *builder) withPip(ctx context.Context) error {
	if err := b.venv(ctx, b.folder); err != nil {
		return err
	}
	return b.run(ctx, filepath.Join(b.folder, "bin", "python"), "-m", "pip", "install", "--progress-bar", "off",
		"--require-hashes", "--no-deps", "-r", b.lockFile)
}

// venv makes an empty environment with pip in it, in place of what an earlier attempt may have left.
func (b *builder) venv(ctx context.Context, folder string) error {
	if err := os.RemoveAll(folder); err != nil {
		return fmt.Errorf("remove an unfinished environment: %w", err)
	}
	if err := b.run(ctx, b.base, "-m", "venv", folder); err != nil {
		return failed("install Python's venv module (on Debian and Ubuntu: apt-get install python3-venv)", "make a Python environment: %w", err)
	}
	return nil
}

// run runs an installer and shows its output.
func (b *builder) run(ctx context.Context, path string, args ...string) error {
	show := &indented{w: b.out}
	defer show.flush()
	return process.Run(ctx, process.Spec{
		Name: filepath.Base(path), Path: path, Args: args, Stdout: show, Stderr: show,
		// Without the first, uv would fetch an interpreter of its own from a host that no registry setting covers.
		Env: []string{"UV_PYTHON_DOWNLOADS=never", "PIP_DISABLE_PIP_VERSION_CHECK=1"},
	}, zerolog.Nop())
}

// indented shows an installer's lines under the step they belong to. Both of its streams write here.
type indented struct {
	w       io.Writer
	mu      sync.Mutex
	partial []byte
}

// Write implements io.Writer.
func (i *indented) Write(p []byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.partial = append(i.partial, p...)
	for {
		line, rest, ok := bytes.Cut(i.partial, []byte{'\n'})
		if !ok {
			return len(p), nil
		}
		fmt.Fprintf(i.w, "       %s\n", line)
		i.partial = rest
	}
}

// flush shows a last line without an end.
func (i *indented) flush() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.partial) > 0 {
		fmt.Fprintf(i.w, "       %s\n", i.partial)
		i.partial = nil
	}
}
