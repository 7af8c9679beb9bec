package setup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// MissingError says that something must be set up first.
type MissingError struct {
	// What is missing, for people.
	What string
	// Path where it would be.
	Path string
	// DownloadBytes is how much setting it up downloads, roughly.
	DownloadBytes int64
}

// Error implements error.
func (e *MissingError) Error() string {
	return fmt.Sprintf("%s is not set up (looked for %s)", e.What, e.Path)
}

// Hint says what to do about it.
func (e *MissingError) Hint() string {
	return fmt.Sprintf("run `ctrloop setup` (downloads about %s)", Bytes(e.DownloadBytes))
}

// ExitCode is that of a missing set-up.
func (e *MissingError) ExitCode() int { return 3 }

// Error is a failed set-up with what to do about it.
type Error struct {
	err  error
	hint string
}

// Error implements error.
func (e *Error) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.err }

// Hint says what to do about it.
func (e *Error) Hint() string { return e.hint }

func failed(hint string, format string, args ...any) error {
	return &Error{err: fmt.Errorf(format, args...), hint: hint}
}

// Home returns the folder of downloads: the given one, else CTRLOOP_HOME, else ctrloop in the user's cache folder.
func Home(given string) (string, error) {
	if given == "" {
		given = os.Getenv("CTRLOOP_HOME")
	}
	if given != "" {
		return filepath.Abs(given)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", failed("set CTRLOOP_HOME to a folder with 10 GB free", "no folder for downloads: %w", err)
	}
	return filepath.Join(cache, "ctrloop"), nil
}

// Options of a set-up.
type Options struct {
	// Home is the folder of downloads, see [Home].
	Home string
	// Lock is the hashed requirements file of the Python environment. Empty skips Python.
	Lock []byte
	// NoEngine leaves the embedded engine out.
	NoEngine bool
	// NoKafka leaves the embedded broker out.
	NoKafka bool
	// LibraryTarball is a local copy of the engine's npm package, used instead of a download.
	LibraryTarball string
	// Progress gets lines for people.
	Progress io.Writer
}

// Item is one thing that set-up provides.
type Item struct {
	Name    string `json:"name"`
	Present bool   `json:"present"`
	Path    string `json:"path"`
	// DownloadBytes and DiskBytes are what fetching it takes; the ones of Python are rough.
	DownloadBytes int64 `json:"download_bytes"`
	DiskBytes     int64 `json:"disk_bytes"`
	// Note explains what is special: an override, an unsupported platform.
	Note string `json:"note,omitempty"`
}

// Check says what is there and what is missing, without fetching anything. Files are checked by size, not by
// checksum; Run does that.
func Check(opts Options) []Item {
	var items []Item
	if !opts.NoEngine {
		items = append(items, libraryItem(opts.Home))
	}
	if !opts.NoKafka {
		items = append(items, kafkaItems(opts.Home)...)
	}
	if len(opts.Lock) > 0 {
		items = append(items, pythonItem(opts.Home, opts.Lock))
	}
	return items
}

// Run fetches what is missing. It may be interrupted and run again at any point.
func Run(ctx context.Context, opts Options) error {
	if opts.Progress == nil {
		opts.Progress = io.Discard
	}
	if err := os.MkdirAll(opts.Home, 0o755); err != nil {
		return failed("set CTRLOOP_HOME to a folder that you can write", "cannot make the folder of downloads: %w", err)
	}
	unlock, err := lockHome(ctx, opts.Home, opts.Progress)
	if err != nil {
		return err
	}
	defer unlock()
	if err := announce(opts); err != nil {
		return err
	}
	// The others get a chance even where the engine does not exist for the platform: training does not need it.
	var errLibrary error
	if !opts.NoEngine {
		errLibrary = ensureLibrary(ctx, opts)
	}
	var errKafka error
	if !opts.NoKafka && ctx.Err() == nil {
		errKafka = ensureKafka(ctx, opts)
	}
	var errPython error
	if len(opts.Lock) > 0 && ctx.Err() == nil {
		errPython = ensurePython(ctx, opts)
	}
	return firstHint(errLibrary, errKafka, errPython)
}

// firstHint joins errors so that the hint of the first one is found.
func firstHint(errs ...error) error {
	var all []error
	for _, err := range errs {
		if err != nil {
			all = append(all, err)
		}
	}
	if len(all) == 1 {
		return all[0]
	}
	return errors.Join(all...)
}

// announce says what will be fetched and how large it is, before anything is, and that the disk can hold it.
func announce(opts Options) error {
	var download, disk int64
	for _, item := range Check(opts) {
		if item.Present || item.DownloadBytes == 0 {
			fmt.Fprintf(opts.Progress, "have   %-26s %s%s\n", item.Name, item.Path, note(item))
			continue
		}
		fmt.Fprintf(opts.Progress, "fetch  %-26s %s to download, %s on disk, into %s\n",
			item.Name, Bytes(item.DownloadBytes), Bytes(item.DiskBytes), item.Path)
		download, disk = download+item.DownloadBytes, disk+item.DiskBytes
	}
	if download == 0 {
		return nil
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(opts.Home, &stat); err != nil {
		return fmt.Errorf("ask for the free space of %s: %w", opts.Home, err)
	}
	free := int64(stat.Bavail) * int64(stat.Bsize) //nolint:unconvert // the types differ between platforms
	if free < disk {
		return failed("free some space, or set CTRLOOP_HOME to a folder on another disk",
			"%s has %s free, set-up needs %s", opts.Home, Bytes(free), Bytes(disk))
	}
	fmt.Fprintf(opts.Progress, "total  %s to download, %s on disk, %s free\n", Bytes(download), Bytes(disk), Bytes(free))
	return nil
}

func note(item Item) string {
	if item.Note == "" {
		return ""
	}
	return " (" + item.Note + ")"
}

// lockRetry is how often a set-up asks whether another one has finished.
const lockRetry = 200 * time.Millisecond

// lockHome keeps other set-ups out of the home folder until unlock is called. The kernel releases the lock of a
// process that dies.
func lockHome(ctx context.Context, home string, progress io.Writer) (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(home, "setup.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, failed("set CTRLOOP_HOME to a folder that you can write", "cannot lock the folder of downloads: %w", err)
	}
	for waited := false; ; waited = true {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", file.Name(), err)
		}
		if !waited {
			fmt.Fprintf(progress, "wait   another `ctrloop setup` is working on %s\n", home)
		}
		select {
		case <-time.After(lockRetry):
		case <-ctx.Done():
			file.Close()
			return nil, fmt.Errorf("wait for the other set-up: %w", ctx.Err())
		}
	}
}

// Bytes is a size for people, in powers of 1000 as downloads are counted.
func Bytes(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.0f MB", float64(n)/1e6)
	default:
		return fmt.Sprintf("%d bytes", n)
	}
}
