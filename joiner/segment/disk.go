package segment

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// disk is the part of a file system that a keeper uses, in one folder; tests make it fail.
type disk interface {
	// create makes a new file for writing.
	create(name string) (file, error)
	open(name string) (readFile, error)
	rename(from, to string) error
	remove(name string) error
	// sync makes names durable.
	sync() error
	list() ([]string, error)
}

type file interface {
	io.WriteCloser
	Sync() error
}

type readFile interface {
	io.ReaderAt
	io.Closer
}

// folder is a real one.
type folder string

func (f folder) path(name string) string { return filepath.Join(string(f), name) }

func (f folder) create(name string) (file, error) {
	if err := os.MkdirAll(string(f), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(f.path(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
}

func (f folder) open(name string) (readFile, error) { return os.Open(f.path(name)) }
func (f folder) rename(from, to string) error       { return os.Rename(f.path(from), f.path(to)) }
func (f folder) remove(name string) error           { return os.Remove(f.path(name)) }

func (f folder) sync() error {
	d, err := os.Open(string(f))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (f folder) list() ([]string, error) {
	es, err := os.ReadDir(string(f))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names, err
}
