package experiment

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"ctrloop/internal/httpapi"
	"ctrloop/internal/warehouse/query"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/experiment/exposure"
)

// snapshot gives other services what assignment needs of the state, to evaluate locally (package feature). Seeds and
// forced units are in it: it is for services, not for browsers.
func (s *Service) snapshot(w http.ResponseWriter, r *http.Request) {
	st := s.d.Control.State()
	etag := `"` + strconv.FormatInt(st.Offset, 10) + `"`
	w.Header().Set("ETag", etag)
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	running := map[string]*control.ExperimentStatus{}
	for id, x := range st.Experiments {
		if x.Running() {
			c := *x
			c.History, c.Trail = nil, nil
			running[id] = &c
		}
	}
	httpapi.Reply(w, http.StatusOK, map[string]any{"offset": st.Offset, "routes": st.Routes, "experiments": running, "holdouts": st.Holdouts})
}

// maxExposures bounds one request.
const maxExposures = 5000

// expose takes exposures from other services.
func (s *Service) expose(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Exposures []exposure.Exposure `json:"exposures"`
	}
	if err := httpapi.ReadJSON(r, maxBody, &req); err != nil {
		httpapi.Fail(w, err)
		return
	}
	if s.d.Exposures == nil {
		httpapi.Fail(w, httpapi.Refuse(http.StatusNotFound, "start an instance with a warehouse", "%v", errNoReports))
		return
	}
	if len(req.Exposures) > maxExposures {
		httpapi.Fail(w, httpapi.Refuse(http.StatusRequestEntityTooLarge, "send at most "+strconv.Itoa(maxExposures)+" at once",
			"%d exposures", len(req.Exposures)))
		return
	}
	experiments := s.d.Control.State().Experiments
	for _, e := range req.Exposures {
		if experiments[e.Experiment] == nil || e.Unit == "" || e.Variant != assign.Control && e.Variant != assign.Treatment || e.Time.IsZero() {
			httpapi.Fail(w, httpapi.Refuse(http.StatusUnprocessableEntity,
				"each wants an experiment that exists, a unit, the variant control or treatment, and a time (RFC 3339)",
				"an exposure of %q to %q of %q", e.Unit, e.Variant, e.Experiment))
			return
		}
	}
	if err := s.d.Exposures.Expose(r.Context(), req.Exposures); err != nil {
		httpapi.Fail(w, httpapi.Refuse(http.StatusServiceUnavailable, "send them again; repetitions do no harm", "%v", err))
		return
	}
	httpapi.Reply(w, http.StatusAccepted, map[string]int{"exposures": len(req.Exposures)})
}

var _ exposure.Sink = Warehouse{}

// Expose keeps exposures in the table of that name, one row per experiment, unit, day and variant.
func (w Warehouse) Expose(ctx context.Context, es []exposure.Exposure) error {
	if len(es) == 0 {
		return nil
	}
	experiments, units, variants, times := make([]string, len(es)), make([]string, len(es)), make([]string, len(es)), make([]int64, len(es))
	for i, e := range es {
		experiments[i], units[i], variants[i], times[i] = e.Experiment, e.Unit, e.Variant, e.Time.UnixMilli()
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return w.DB.Exec(ctx, query.Text("insert_exposures"), experiments, units, variants, times)
}
