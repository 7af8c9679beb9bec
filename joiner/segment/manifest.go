package segment

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"ctrloop/joiner/window"
)

const (
	manifestName = "manifest"
	// manifestVersion is of the manifest and of the records: another layout of either gets another number.
	manifestVersion = 2
)

// manifest is its first line.
type manifest struct {
	Version int `json:"version"`
	Identity
	Place
	Files []fileOf `json:"files"`
	Image int      `json:"image_bytes"`
}

type fileOf struct {
	Name   string  `json:"name"`
	Blocks []block `json:"blocks"`
}

// Reason says why a manifest was ignored. The list is closed; each reason has a metric.
type Reason string

// Reasons to ignore what is on disk.
const (
	ReasonCorrupt  Reason = "corrupt"         // a sum is wrong, something is missing or cannot be read
	ReasonIdentity Reason = "other_identity"  // of another topic, partition or window, or of another version of ctrloop
	ReasonAhead    Reason = "ahead_of_commit" // of a commit that the group does not have
	ReasonEpoch    Reason = "other_epoch"     // the broker has lost or replaced records that it was made of
	ReasonHash     Reason = "other_hash"      // the state that came of it is not the committed one
)

var errCorrupt = errors.New("a checksum is wrong")

// Ignored is the error of Load. The way on is always the rebuild from the inputs.
type Ignored struct {
	Reason Reason
	Err    error
}

func (e *Ignored) Error() string { return fmt.Sprintf("segments ignored (%s): %v", e.Reason, e.Err) }
func (e *Ignored) Unwrap() error { return e.Err }

func ignored(r Reason, format string, args ...any) error {
	return &Ignored{r, fmt.Errorf(format, args...)}
}

func (m manifest) write(d disk, image []byte) (err error) {
	const name = manifestName + ".tmp"
	m.Image = len(image)
	head, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	head = append(head, '\n')
	if err := d.remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("manifest: %w", err)
	}
	f, err := d.create(name)
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	sum := crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, image)
	for _, part := range [][]byte{head, image, binary.LittleEndian.AppendUint32(nil, sum)} {
		if err == nil {
			_, err = f.Write(part)
		}
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = d.rename(name, manifestName)
	}
	if err == nil {
		err = d.sync()
	}
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	return nil
}

// readManifest returns os.ErrNotExist if there is none.
func readManifest(d disk) (m manifest, image []byte, err error) {
	f, err := d.open(manifestName)
	if err != nil {
		return m, nil, err
	}
	defer f.Close()
	all, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<40))
	if err != nil {
		return m, nil, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	end := bytes.IndexByte(all, '\n') + 1
	if end == 0 || len(all) < end+4 {
		return m, nil, fmt.Errorf("%w: the manifest is cut", errCorrupt)
	}
	body, sum := all[:len(all)-4], binary.LittleEndian.Uint32(all[len(all)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return m, nil, fmt.Errorf("%w: manifest", errCorrupt)
	}
	if err := json.Unmarshal(all[:end], &m); err != nil {
		return m, nil, fmt.Errorf("%w: manifest: %w", errCorrupt, err)
	}
	return m, body[end:], nil
}

// Load makes a window of what is on disk, in the middle of a rebuild (see window.Load): the caller feeds it the inputs
// from Place.Next on. It returns nil without an error when there is nothing, and *Ignored when what is there does not
// fit. epoch says whether the broker still has the records that an input was read from.
func (k *Keeper) Load(cfg window.Config, sequence int64, snap window.Snapshot, epoch func(Place) error) (*window.Window, Place, error) {
	m, image, err := readManifest(k.disk)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, Place{}, nil
	case err != nil:
		return nil, Place{}, ignored(ReasonCorrupt, "%w", err)
	case m.Version != manifestVersion || m.Identity != k.id:
		return nil, Place{}, ignored(
			ReasonIdentity,
			"they are of %+v (version %d), this is %+v (version %d)",
			m.Identity,
			m.Version,
			k.id,
			manifestVersion,
		)
	case m.Sequence > sequence || m.Next[0] > snap.NextOffset[0] || m.Next[1] > snap.NextOffset[1]:
		return nil, Place{}, ignored(
			ReasonAhead,
			"they are of commit %d at %v, the group is at commit %d at %v",
			m.Sequence,
			m.Next,
			sequence,
			snap.NextOffset,
		)
	}
	if err := epoch(m.Place); err != nil {
		return nil, Place{}, ignored(ReasonEpoch, "%w", err)
	}
	w, err := k.load(cfg, snap, m, image)
	if err != nil {
		for _, s := range k.files {
			s.close()
		}
		k.files = nil
		return nil, Place{}, ignored(ReasonCorrupt, "%w", err)
	}
	return w, m.Place, nil
}

func (k *Keeper) load(cfg window.Config, snap window.Snapshot, m manifest, image []byte) (*window.Window, error) {
	type where struct {
		s *segment
		b block
	}
	at := map[int64]where{}
	total := len(image)
	for _, f := range m.Files {
		s := &segment{name: f.Name, disk: k.disk, blocks: f.Blocks, synced: true}
		k.files = append(k.files, s)
		for _, b := range f.Blocks {
			at[b.Bucket] = where{s, b}
			total += b.Size
		}
	}
	var buf []byte
	keep := k.opt.Memory == 0 || total <= k.opt.Memory
	return window.Load(cfg, snap, image, func(number int64, size int) (io.ReaderAt, int64, error) {
		x, ok := at[number]
		if !ok || x.b.Size != size {
			return nil, 0, fmt.Errorf("%w: no block of %d bytes for bucket %d", errCorrupt, size, number)
		}
		var err error
		buf, err = x.s.check(x.b, buf)
		return x.s, x.b.At, err
	}, keep)
}
