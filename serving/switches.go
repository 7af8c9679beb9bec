package serving

import (
	"cmp"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"ctrloop/internal/httpapi"
	"ctrloop/schemas/control"
	"ctrloop/serving/swap"
)

// maxSwitchBody bounds a request of a person, in bytes: its note is the most of it.
const maxSwitchBody = 64 << 10

// switchRequest is what a person asks for, and why.
type switchRequest struct {
	Note   string `json:"note"`             // why; who reads the log later must see it
	Expect *int64 `json:"expect,omitempty"` // version of the entity that this was decided on; nil: any
}

// readSwitch reads the request; false: it is answered.
func readSwitch(w http.ResponseWriter, r *http.Request) (req switchRequest, ok bool) {
	if err := httpapi.ReadJSON(r, maxSwitchBody, &req); err != nil {
		httpapi.Fail(w, err)
		return req, false
	}
	switch {
	case strings.TrimSpace(req.Note) == "":
		httpapi.Fail(w, httpapi.Refuse(http.StatusUnprocessableEntity, "give a note: who reads the log later must see why", "no note"))
		return req, false
	case len(req.Note) > control.MaxText:
		httpapi.Fail(w, httpapi.Refuse(http.StatusUnprocessableEntity, "say it shorter, or name where the rest is",
			"a note of %d bytes, at most %d", len(req.Note), control.MaxText))
		return req, false
	}
	return req, true
}

// command appends what a person has asked for, in that person's name.
func (s *Service) command(r *http.Request, typ control.Type, entity string, req switchRequest, data any) error {
	expect := int64(-1)
	if req.Expect != nil {
		expect = *req.Expect
	}
	e, err := control.NewEvent(uuid.NewString(), typ, entity, expect, httpapi.Who(r.Context()).Name, req.Note, time.Now(), data)
	if err != nil {
		return err
	}
	_, err = s.d.Control.Append(r.Context(), e) // repeated cannot be: the id is new
	return err
}

// failSwitch answers a command that was not carried out.
func failSwitch(w http.ResponseWriter, err error) {
	status, hint := http.StatusServiceUnavailable, "the control log did not take the command; try again"
	switch {
	case errors.Is(err, control.ErrConflict), errors.Is(err, control.ErrInvalid):
		status, hint = http.StatusConflict, "look again and decide anew; what was decided stands"
	case errors.Is(err, swap.ErrNotReady):
		status, hint = http.StatusConflict, "it was unloaded: an experiment can bring it back"
	}
	httpapi.Fail(w, httpapi.Refuse(status, hint, "%v", err))
}

// block answers POST /v1/creatives/{id}/block and unblock: one command on the control log, which every replica follows. When
// it returns, this one decides and serves by it.
func (s *Service) block(typ control.Type) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		req, ok := readSwitch(w, r)
		if !ok {
			return
		}
		id := r.PathValue("id")
		if _, known := s.lib.Stored(id); !known {
			httpapi.Fail(w, httpapi.Refuse(http.StatusNotFound, "GET /v1/creatives lists them", "no creative %q", id))
			return
		}
		if err := s.command(r, typ, control.CreativeEntity(id), req, control.CreativeBlock{Creative: id}); err != nil {
			failSwitch(w, err)
			return
		}
		s.applyControl()
		c, _ := s.lib.Now().Get(id)
		httpapi.Reply(w, http.StatusOK, c)
	}
}

// VersionRow is a model version as GET /v1/models/versions lists it.
type VersionRow struct {
	Version  string             `json:"version"`
	Logical  string             `json:"logical"`
	State    control.ModelState `json:"state"`
	Reason   string             `json:"reason,omitempty"`
	Since    time.Time          `json:"since"`
	Champion bool               `json:"champion"`
	Previous bool               `json:"previous"` // champion before: a rollback goes back to it
	Replicas int                `json:"replicas"` // on which it answers
	Job      string             `json:"job,omitempty"`
}

// versions lists all versions that the control log knows, by logical model, the newest state first.
func (s *Service) versions(w http.ResponseWriter, _ *http.Request) {
	st := s.d.Control.State()
	rows := make([]VersionRow, 0, len(st.Models))
	for _, m := range st.Models {
		route := st.Routes[m.Logical]
		row := VersionRow{
			Version: m.Version, Logical: m.Logical, State: m.State, Reason: m.Reason, Since: m.Since, Job: m.Job,
			Champion: route.Champion == m.Version, Previous: route.Previous == m.Version,
		}
		if v, ok := s.table.Version(m.Version); ok {
			row.Replicas = len(v.Replicas)
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b VersionRow) int {
		return cmp.Or(cmp.Compare(a.Logical, b.Logical), b.Since.Compare(a.Since), cmp.Compare(a.Version, b.Version))
	})
	httpapi.Reply(w, http.StatusOK, map[string]any{"versions": rows})
}

// rollBack answers POST /v1/models/{logical}/rollback: the champion before answers again. It is still loaded, so nothing is.
func (s *Service) rollBack(w http.ResponseWriter, r *http.Request) {
	req, ok := readSwitch(w, r)
	if !ok {
		return
	}
	logical := r.PathValue("logical")
	st := s.d.Control.State()
	route := st.Routes[logical]
	entity := control.RouteEntity(logical)
	switch {
	case route.Champion == "":
		httpapi.Fail(w, httpapi.Refuse(http.StatusNotFound, "GET /v1/models lists them", "no logical model %q with a champion", logical))
		return
	case req.Expect != nil && *req.Expect != st.Versions[entity]:
		httpapi.Fail(w, httpapi.Refuse(http.StatusConflict, "look again and decide anew; what was decided stands",
			"%s is at version %d, the request expects %d", entity, st.Versions[entity], *req.Expect))
		return
	case route.Previous == "":
		httpapi.Fail(w, httpapi.Refuse(http.StatusConflict, "there is nothing to go back to",
			"%s has been the only champion of %s", route.Champion, logical))
		return
	}
	if err := s.Promote(r.Context(), route.Previous, true, httpapi.Who(r.Context()).Name, req.Note); err != nil {
		failSwitch(w, err)
		return
	}
	s.applyControl()
	httpapi.Reply(w, http.StatusOK, s.d.Control.State().Routes[logical])
}
