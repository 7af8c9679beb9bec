package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// FrozenFolder holds hard links of moments, beside the broker's data. A process that is killed leaves some, the next start
// removes them.
const FrozenFolder = "frozen"

// Frozen is what a broker had on disk at one moment.
type Frozen struct {
	// Links is a folder with the layout of the broker's own. The files in it are hard links, to which the broker
	// goes on appending: only their first bytes belong to the moment.
	Links string `json:"links"`
	// Sizes of the files at the moment, bytes, by path inside of Links.
	Sizes map[string]int64 `json:"sizes"`
}

// Freeze keeps the present state of the broker, across all its files, as kill -9 at this moment would leave it: Kafka
// recovers a copy of it as it recovers after kill -9, so that every transaction is either committed or not at all.
// The process is stopped (SIGSTOP) while its files are linked, some milliseconds; nothing is copied. Release what was frozen.
//
// What Kafka keeps beside its logs is either replaced as a whole, so that a link keeps the old one, or an index, which it changes
// in place: those of the segments that are written to are left out, and Kafka makes them anew.
func (b *Broker) Freeze(ctx context.Context) (f Frozen, err error) {
	f = Frozen{Links: filepath.Join(b.cfg.Dir, FrozenFolder, rand.Text()), Sizes: map[string]int64{}}
	fail := func(err error) (Frozen, error) {
		return f, errors.Join(fmt.Errorf("freeze the embedded broker: %w", err), f.Release())
	}
	if err := b.server.WaitReady(ctx); err != nil {
		return fail(err)
	}
	pid := b.server.PID()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return fail(err)
	}
	err = awaitStopped(ctx, pid)
	if err == nil {
		err = f.link(b.cfg.Dir)
	}
	err = errors.Join(err, syscall.Kill(pid, syscall.SIGCONT))
	if err == nil && b.server.PID() != pid {
		err = errors.New("the broker ended meanwhile: try again")
	}
	if err != nil {
		return fail(err)
	}
	return f, nil
}

// awaitStopped waits until no thread of a process runs: the kernel stops each at its next return from a system call.
func awaitStopped(ctx context.Context, pid int) error {
	for deadline := time.Now().Add(2 * time.Second); ; {
		running, err := runningThreads(pid)
		if err != nil || running == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d threads of process %d do not stop", running, pid)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond): // nothing tells of it
		}
	}
}

// runningThreads counts the threads that are not stopped; it needs Linux's /proc.
func runningThreads(pid int) (n int, err error) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return 0, fmt.Errorf("look at the threads of the broker (stop the instance instead where there is no /proc): %w", err)
	}
	for _, task := range tasks {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/stat", pid, task.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has ended
		}
		if err != nil {
			return 0, err
		}
		// pid (name) state ...; the name may hold anything.
		_, after, _ := strings.Cut(string(raw[strings.LastIndexByte(string(raw), ')'):]), " ")
		if !strings.HasPrefix(after, "T") && !strings.HasPrefix(after, "t") && !strings.HasPrefix(after, "X") && !strings.HasPrefix(after, "Z") {
			n++
		}
	}
	return n, nil
}

// link makes the links of one folder's data.
func (f Frozen) link(dir string) error {
	data := filepath.Join(dir, dataFolder)
	newest := map[string]string{} // name of the last segment, by folder
	return filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		to := filepath.Join(f.Links, name)
		if d.IsDir() {
			if newest[path], err = newestSegment(path); err != nil {
				return err
			}
			return os.MkdirAll(to, 0o755)
		}
		if skipped(d.Name(), newest[filepath.Dir(path)]) {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		f.Sizes[filepath.ToSlash(name)] = info.Size()
		return os.Link(path, to)
	})
}

// newestSegment is the base offset, as in file names, of the segment of a partition that is written to.
func newestSegment(folder string) (string, error) {
	logs, err := filepath.Glob(filepath.Join(folder, "*.log"))
	if err != nil || len(logs) == 0 {
		return "", err
	}
	return strings.TrimSuffix(filepath.Base(logs[len(logs)-1]), ".log"), nil // sorted, of equal length
}

// skipped says which files do not belong to a moment: indexes that change in place, the lock, and the mark of an ordered stop.
func skipped(name, newest string) bool {
	base, ext, _ := strings.Cut(name, ".")
	switch {
	case name == ".lock", name == ".kafka_cleanshutdown":
		return true
	case ext == "index", ext == "timeindex", ext == "txnindex":
		return base == newest
	default:
		return false
	}
}

// Release forgets the moment and gives back the disk that only it held.
func (f Frozen) Release() error { return os.RemoveAll(f.Links) }
