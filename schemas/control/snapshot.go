package control

import (
	"encoding/json"
	"fmt"
)

// Snapshot is the fold of a log up to its Offset, so that a reader need not begin at the log's start. It is a shortcut: the
// log itself stays the truth, and a snapshot that does not fit is left aside.
type Snapshot struct {
	Log   string   `json:"log"` // id of the topic: offsets of another one mean something else
	State *State   `json:"state"`
	Seen  []string `json:"seen"` // ids applied, oldest first
}

// Snapshot encodes the state as a JSON Snapshot.
func (s *State) Snapshot(log string) ([]byte, error) {
	raw, err := json.Marshal(Snapshot{Log: log, State: s, Seen: s.seen.oldestFirst()})
	if err != nil {
		return nil, fmt.Errorf("encode a snapshot of offset %d: %w", s.Offset, err)
	}
	return raw, nil
}

// ReadSnapshot decodes a snapshot. One of a newer format is an error (ErrBehind): it holds what this release would drop.
func ReadSnapshot(raw []byte) (log string, s *State, err error) {
	snap := Snapshot{State: NewState()}
	if err := json.Unmarshal(raw, &snap); err != nil {
		return "", nil, fmt.Errorf("decode a snapshot: %w", err)
	}
	s = snap.State
	if s == nil || s.Offset < 0 {
		return "", nil, fmt.Errorf("decode a snapshot: %w: no state", ErrInvalid)
	}
	if s.Format > Format || s.Behind != nil {
		return "", nil, fmt.Errorf("decode a snapshot: %w: format %d, this release knows %d", ErrBehind, s.Format, Format)
	}
	for _, id := range snap.Seen {
		s.seen.add(id)
	}
	return snap.Log, s, nil
}
