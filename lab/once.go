package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"ctrloop/internal/artifact"
)

// stamp lies in a folder that once made, and says from what.
type stamp struct {
	Key  string `json:"key"`
	Done bool   `json:"done"`
}

const stampFile = "stamp.json"

// once makes the contents of a folder that follow from key alone (any JSON). A folder that was finished for the same
// key is used as it is; one that was begun for it is finished; what was made for another key is removed first.
func once(dir string, key any, fill func() error) error {
	raw, err := json.Marshal(key)
	if err != nil {
		return fmt.Errorf("key of %s: %w", dir, err)
	}
	sum := sha256.Sum256(raw)
	want := hex.EncodeToString(sum[:])
	file := filepath.Join(dir, stampFile)
	have, err := readStamp(file)
	if err != nil {
		return err
	}
	if have.Key == want && have.Done {
		return nil
	}
	if have.Key != want {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := writeStamp(file, stamp{want, false}); err != nil {
			return err
		}
	}
	if err := fill(); err != nil {
		return err
	}
	return writeStamp(file, stamp{want, true})
}

func readStamp(file string) (s stamp, err error) {
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if entries, err := os.ReadDir(filepath.Dir(file)); err == nil && len(entries) > 0 {
			return s, fmt.Errorf("%s holds files of something else: give another --dir", filepath.Dir(file))
		}
		return s, nil
	}
	if err != nil {
		return s, err
	}
	_ = json.Unmarshal(raw, &s) // a stamp that a crash cut short is no stamp: the folder is made again
	return s, nil
}

func writeStamp(file string, s stamp) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return artifact.WriteFile(file, append(raw, '\n'), 0o644)
}
