package trainerbridge

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// A job on a cluster reads and writes the files of this instance: both sides see one folder. A store that copies (S3) could take the
// place of a share: it would place what `there` is asked for before a run is submitted, and fetch the run's notes and results when
// the cluster says that it has ended.

// PathMap is a folder that this machine and those of a cluster share.
type PathMap struct {
	// Here is the folder's absolute path on this machine.
	Here string `yaml:"here"`
	// There is its absolute path on the cluster's machines.
	There string `yaml:"there"`
}

// share names files of this machine as a cluster's machines see them: by the map with the longest prefix. Without any map, all
// paths are the same on both sides.
type share []PathMap

// errNotShared is a path that a cluster cannot see.
var errNotShared = errors.New("is in none of the folders that this machine shares with the cluster (trainer.cluster.paths)")

// there returns the path of a file on the cluster's machines; "" stays "".
func (s share) there(path string) (string, error) {
	if path == "" || len(s) == 0 {
		return path, nil
	}
	best, to := -1, ""
	for _, m := range s {
		rest, under := strings.CutPrefix(path, m.Here)
		if under && (rest == "" || rest[0] == filepath.Separator) && len(m.Here) > best {
			best, to = len(m.Here), m.There+rest
		}
	}
	if best < 0 {
		return "", fmt.Errorf("%s %w", path, errNotShared)
	}
	return to, nil
}

// translate puts all paths of a specification into the cluster's. keep is a program of the cluster's machines, which no folder has.
func (s share) translate(t TrainerSpec, keep string) (TrainerSpec, error) {
	var errs []error
	for _, p := range []*string{
		&t.Base, &t.Dataset, &t.RewardModel, &t.RefereeModel, &t.Previous, &t.Truth, &t.Grammar, &t.Catalogue,
	} {
		there, err := s.there(*p)
		errs = append(errs, err)
		*p = there
	}
	command := make([]string, 0, len(t.Renderer))
	for _, word := range t.Renderer {
		if word != keep && filepath.IsAbs(word) {
			there, err := s.there(word)
			errs = append(errs, err)
			word = there
		}
		command = append(command, word)
	}
	t.Renderer = command
	return t, errors.Join(errs...)
}

// PlaceProgram copies a program into a folder, named by its content, and returns the copy: the machines of a cluster run the same
// release as this one.
func PlaceProgram(program, dir string) (string, error) {
	in, err := os.Open(program)
	if err != nil {
		return "", fmt.Errorf("place %s: %w", program, err)
	}
	defer in.Close()
	h := sha256.New()
	if _, err := io.Copy(h, in); err != nil {
		return "", fmt.Errorf("place %s: %w", program, err)
	}
	to := filepath.Join(dir, fmt.Sprintf("%s-%.12s", filepath.Base(program), hex.EncodeToString(h.Sum(nil))))
	if fileExists(to) {
		return to, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("place %s: %w", program, err)
	}
	tmp, err := os.CreateTemp(dir, ".program-*")
	if err != nil {
		return "", fmt.Errorf("place %s: %w", program, err)
	}
	defer os.Remove(tmp.Name()) // does nothing after the rename
	_, err = in.Seek(0, io.SeekStart)
	if err == nil {
		_, err = io.Copy(tmp, in)
	}
	if err := errors.Join(err, tmp.Chmod(0o755), tmp.Sync(), tmp.Close()); err != nil {
		return "", fmt.Errorf("place %s: %w", program, err)
	}
	return to, os.Rename(tmp.Name(), to)
}
