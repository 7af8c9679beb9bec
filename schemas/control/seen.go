package control

import (
	"maps"
	"slices"
)

// maxSeen is how many ids are remembered. A command that is sent again comes within seconds; one with a fixed id, such as
// "finish-<job>-<attempt>", is refused by the state too, however late it comes.
const maxSeen = 16384

// seen are the ids that were applied last. The zero value is ready.
type seen struct {
	ids  map[string]bool
	ring []string // in order; once full, at is the oldest
	at   int
}

func (s *seen) has(id string) bool { return s.ids[id] }

func (s *seen) add(id string) {
	if s.ids == nil {
		s.ids = map[string]bool{}
	}
	s.ids[id] = true
	if len(s.ring) < maxSeen {
		s.ring = append(s.ring, id)
		return
	}
	delete(s.ids, s.ring[s.at])
	s.ring[s.at] = id
	s.at = (s.at + 1) % maxSeen
}

// oldestFirst lists the ids, so that adding them to an empty one makes the same.
func (s *seen) oldestFirst() []string {
	return append(slices.Clone(s.ring[s.at:]), s.ring[:s.at]...)
}

func (s *seen) clone() seen { return seen{maps.Clone(s.ids), slices.Clone(s.ring), s.at} }
