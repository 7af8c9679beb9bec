package sink

import (
	"time"

	"ctrloop/internal/telemetry"
)

// lostPause is the pause between two looks at a partition whose next records the broker has deleted: nothing but a person
// heals that.
const lostPause = time.Minute

// Parts of the sink, as readiness and the log name them.
const (
	partLabels   = "labels"
	partMirror   = "mirror"
	partControl  = "control"
	partAudit    = "audit"
	partProgress = "progress"
)

// Reports has each part of the service say whether it can do its work. Call it before Run.
func (s *Service) Reports(works telemetry.Works) {
	s.work = map[string]*telemetry.Work{}
	for _, part := range []string{partLabels, partMirror, partControl, partAudit, partProgress} {
		s.work[part] = works.Of("sink: " + part)
	}
}
