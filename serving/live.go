package serving

import (
	"time"

	"ctrloop/serving/experiment/assign"
)

// OnAnswer has f called for each chat completion, with its assignment and time. Call OnAnswer before the first request.
func (s *Service) OnAnswer(f func(assign.Assignment, time.Duration)) { s.gateway.OnAnswer(f) }

// Live says which version answers for a logical model now, and on how many replicas it has passed its probe.
// Empty: none; 0 replicas: the champion is known, and no model server answers.
func (s *Service) Live(logical string) (version string, replicas int) {
	version = s.table.Champion(logical)
	if v, ok := s.table.Version(version); ok {
		replicas = len(v.Replicas)
	}
	return version, replicas
}
