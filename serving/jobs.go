package serving

import (
	"cmp"
	"net/http"
	"slices"

	"ctrloop/internal/httpapi"
	"ctrloop/schemas/control"
)

// jobs answers GET /v1/jobs: every training job, the one that queued last first.
func (s *Service) jobs(w http.ResponseWriter, _ *http.Request) {
	st := s.d.Control.State()
	rows := make([]*control.JobStatus, 0, len(st.Jobs))
	for _, j := range st.Jobs {
		rows = append(rows, j)
	}
	slices.SortFunc(rows, func(a, b *control.JobStatus) int { return cmp.Or(b.Queued.Compare(a.Queued), cmp.Compare(a.ID, b.ID)) })
	httpapi.Reply(w, http.StatusOK, map[string]any{"jobs": rows})
}

// job answers GET /v1/jobs/{id}.
func (s *Service) job(w http.ResponseWriter, r *http.Request) {
	if j := s.knownJob(w, r); j != nil {
		httpapi.Reply(w, http.StatusOK, j)
	}
}

// knownJob is the job that a request names; nil: there is none, which is answered.
func (s *Service) knownJob(w http.ResponseWriter, r *http.Request) *control.JobStatus {
	id := r.PathValue("id")
	j := s.d.Control.State().Jobs[id]
	if j == nil {
		httpapi.Fail(w, httpapi.Refuse(http.StatusNotFound, "GET /v1/jobs lists them", "no job %q", id))
	}
	return j
}

// steerJob answers POST /v1/jobs/{id}/cancel and retry: one command on the control log, which whoever runs the job follows.
func (s *Service) steerJob(typ control.Type) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		req, ok := readSwitch(w, r)
		if !ok {
			return
		}
		j := s.knownJob(w, r)
		if j == nil {
			return
		}
		if err := s.command(r, typ, control.JobEntity(j.ID), req, nil); err != nil {
			failSwitch(w, err)
			return
		}
		httpapi.Reply(w, http.StatusOK, s.d.Control.State().Jobs[j.ID])
	}
}
