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
	"fmt"
	"hash"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"ctrloop/internal/process"

	"github.com/rs/zerolog"
)

// pin is one release of the embedded engine for one platform.
type pin struct {
	pkg, version  string // of npm
	tarballSHA512 string
	tarballBytes  int64
	member        string // path of the library in the tarball
	fileSHA256    string
	fileBytes     int64
}

// engines is the pinned engine by GOOS/GOARCH. Only linux/amd64 is published today. The dist-tag `latest` of the
// package is an older release that cannot listen on ports.
var engines = map[string]pin{
	"linux/amd64": {
		pkg: "@chdb/lib-linux-x64-gnu", version: "26.7.3-stable.1",
		tarballSHA512: "5cff7b98caa7739b59a4a432c11f0dedc2d3b073624e61ebdf4a42e66ce8de35" +
			"a6ba48ca9f62016bad1cd81fe059435cb858ce3235a8a2b408082a81563e70a7",
		tarballBytes: 177_817_999,
		member:       "package/libchdb.so",
		fileSHA256:   "36ad4e999882821ef13cf2d0f52c93f48e6ee1b4498b35a201c23ce4b8d15bf5",
		fileBytes:    566_330_096,
	},
}

// platform is the one this binary was built for.
const platform = runtime.GOOS + "/" + runtime.GOARCH

// engineName is what the engine is called in messages.
const engineName = "ClickHouse engine"

// UnsupportedError says that the embedded engine does not exist for this platform.
type UnsupportedError struct{ Platform string }

// Error implements error.
func (e *UnsupportedError) Error() string {
	return "there is no embedded ClickHouse engine for " + e.Platform
}

// Hint says what to do about it.
func (e *UnsupportedError) Hint() string {
	return "run a ClickHouse server and set clickhouse.dsn, or set LIBCHDB to a libchdb of your own"
}

// ExitCode is that of a missing set-up.
func (e *UnsupportedError) ExitCode() int { return 3 }

// Library returns the path of the embedded engine: LIBCHDB where that is set, else the pinned one under home. It is
// a [*MissingError] where set-up has not fetched it, an [*UnsupportedError] where nothing could.
func Library(home string) (string, error) {
	if path := os.Getenv("LIBCHDB"); path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", failed("correct LIBCHDB, or unset it to use the pinned engine", "LIBCHDB: %w", err)
		}
		return path, nil
	}
	p, ok := engines[platform]
	if !ok {
		return "", &UnsupportedError{Platform: platform}
	}
	path := p.path(home)
	// The file got this name after its checksum was verified; hashing 0.6 GB at every start would double its time.
	if stat, err := os.Stat(path); err != nil || stat.Size() != p.fileBytes {
		return "", &MissingError{What: engineName, Path: path, DownloadBytes: p.tarballBytes}
	}
	return path, nil
}

func (p pin) path(home string) string {
	return filepath.Join(home, "libchdb", p.version, filepath.Base(p.member))
}

func libraryItem(home string) Item {
	item := Item{Name: engineName}
	path, err := Library(home)
	var missing *MissingError
	switch {
	case err == nil:
		item.Present, item.Path = true, path
		if os.Getenv("LIBCHDB") != "" {
			item.Note = "from LIBCHDB, not verified"
		}
	case errors.As(err, &missing):
		p := engines[platform]
		item.Path, item.DownloadBytes, item.DiskBytes = missing.Path, p.tarballBytes, p.tarballBytes+p.fileBytes
	default:
		item.Note = err.Error()
	}
	return item
}

// ensureLibrary fetches the engine unless it is there and whole.
func ensureLibrary(ctx context.Context, opts Options) error {
	if path := os.Getenv("LIBCHDB"); path != "" {
		_, err := Library(opts.Home)
		return err
	}
	p, ok := engines[platform]
	if !ok {
		return &UnsupportedError{Platform: platform}
	}
	return p.ensure(ctx, opts)
}

func (p pin) ensure(ctx context.Context, opts Options) error {
	path := p.path(opts.Home)
	if sum, err := sumFile(path, sha256.New()); err == nil && sum == p.fileSHA256 {
		return nil
	} else if err == nil {
		fmt.Fprintf(opts.Progress, "repair %s has a wrong checksum, fetching it again\n", path)
	}
	folder := filepath.Dir(path)
	downloads := filepath.Join(folder, "download")
	if err := os.MkdirAll(downloads, 0o755); err != nil {
		return failed("set CTRLOOP_HOME to a folder that you can write", "cannot make the engine's folder: %w", err)
	}
	begin := time.Now()
	tarball, err := p.tarball(ctx, opts, downloads)
	if err != nil {
		return err
	}
	fmt.Fprintf(opts.Progress, "unpack %s, %s\n", filepath.Base(tarball), Bytes(p.fileBytes))
	if err := p.extract(tarball, path); err != nil {
		return err
	}
	if err := os.RemoveAll(downloads); err != nil {
		return fmt.Errorf("remove the unpacked download: %w", err)
	}
	fmt.Fprintf(opts.Progress, "done   %s in %.0f s\n", engineName, time.Since(begin).Seconds())
	return nil
}

// tarball returns a verified package: the user's own, one that an earlier, killed set-up has left, or a new one.
func (p pin) tarball(ctx context.Context, opts Options, downloads string) (string, error) {
	if given := opts.LibraryTarball; given != "" {
		if err := p.verifyTarball(given); err != nil {
			return "", failed(fmt.Sprintf("give the tarball of %s@%s, as `npm pack` makes it", p.pkg, p.version), "%w", err)
		}
		return given, nil
	}
	left, _ := filepath.Glob(filepath.Join(downloads, "*.tgz"))
	for _, path := range left {
		if p.verifyTarball(path) == nil {
			return path, nil
		}
		if err := os.Remove(path); err != nil {
			return "", fmt.Errorf("remove a broken download: %w", err)
		}
	}
	return p.npmPack(ctx, opts, downloads)
}

// npmPack downloads the package with the npm client.
func (p pin) npmPack(ctx context.Context, opts Options, downloads string) (string, error) {
	byHand := fmt.Sprintf(
		"run it again; or fetch the package elsewhere with `npm pack %s@%s` and give it with --libchdb-tarball",
		p.pkg,
		p.version,
	)
	npm, err := exec.LookPath("npm")
	if err != nil {
		return "", failed("install npm (it comes with Node.js), or fetch the package elsewhere with `npm pack "+p.pkg+"@"+p.version+
			"` and give it with --libchdb-tarball", "the engine is downloaded with npm, which is not on the PATH")
	}
	fmt.Fprintf(opts.Progress, "fetch  %s@%s with npm, %s\n", p.pkg, p.version, Bytes(p.tarballBytes))
	var out bytes.Buffer
	err = process.Run(ctx, process.Spec{
		Name: "npm", Path: npm, Dir: downloads, Stdout: &out,
		Args: []string{"pack", "--silent", "--ignore-scripts", "--pack-destination", downloads, p.pkg + "@" + p.version},
	}, zerolog.Nop())
	if err != nil {
		return "", failed(byHand, "download the engine: %w", err)
	}
	written := strings.Fields(out.String())
	if len(written) == 0 {
		return "", failed(byHand, "download the engine: npm pack named no file")
	}
	path := filepath.Join(downloads, filepath.Base(written[len(written)-1]))
	if err := p.verifyTarball(path); err != nil {
		os.Remove(path)
		return "", failed(byHand, "download the engine: %w", err)
	}
	return path, nil
}

func (p pin) verifyTarball(path string) error {
	sum, err := sumFile(path, sha512.New())
	if err != nil {
		return err
	}
	if sum != p.tarballSHA512 {
		return fmt.Errorf("%s is truncated or altered: its sha512 starts with %s, the pinned one with %s", path, sum[:16], p.tarballSHA512[:16])
	}
	return nil
}

// extract writes the library out of the tarball to path, under another name until its checksum is verified.
func (p pin) extract(tarball, path string) (err error) {
	in, err := os.Open(tarball)
	if err != nil {
		return fmt.Errorf("open the engine's package: %w", err)
	}
	defer in.Close()
	unzipped, err := gzip.NewReader(in)
	if err != nil {
		return fmt.Errorf("unpack %s: %w", tarball, err)
	}
	archive := tar.NewReader(unzipped)
	for {
		header, err := archive.Next()
		if err != nil {
			return fmt.Errorf("find %s in %s: %w", p.member, tarball, err)
		}
		if header.Name == p.member {
			break
		}
	}
	out, err := os.CreateTemp(filepath.Dir(path), ".unpacking-*")
	if err != nil {
		return fmt.Errorf("unpack the engine: %w", err)
	}
	defer os.Remove(out.Name()) // does nothing after the rename
	defer out.Close()
	sum := sha256.New()
	// One byte more than pinned is enough to see that it is another file.
	if _, err := io.Copy(io.MultiWriter(out, sum), io.LimitReader(archive, p.fileBytes+1)); err != nil {
		return fmt.Errorf("unpack the engine: %w", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != p.fileSHA256 {
		return fmt.Errorf("%s in %s has sha256 %s, pinned is %s", p.member, tarball, got, p.fileSHA256)
	}
	if err := errors.Join(out.Chmod(0o755), out.Sync(), out.Close()); err != nil {
		return fmt.Errorf("unpack the engine: %w", err)
	}
	if err := os.Rename(out.Name(), path); err != nil {
		return fmt.Errorf("unpack the engine: %w", err)
	}
	return nil
}

// sumFile returns the checksum of a file in hexadecimal.
func sumFile(path string, h hash.Hash) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
