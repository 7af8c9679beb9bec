package app

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"

	"ctrloop/internal/httpapi"
	"ctrloop/schemas/control"
)

// ControlPath of the admin listener shows the control plane as this process sees it.
const ControlPath = "/controlz"

// ControlView is the answer of ControlPath. Two processes that have read to the same offset answer with the same digest, or
// one of them has folded the log otherwise.
type ControlView struct {
	Offset  int64                          `json:"offset"` // of the last record that was folded
	Digest  string                         `json:"digest"` // SHA-256 of the whole state
	Routes  map[string]control.Route       `json:"routes"` // by logical model
	Leases  map[control.Role]control.Lease `json:"leases"`
	Holds   []control.Role                 `json:"holds"` // roles of this process
	Behind  *control.Newer                 `json:"behind,omitempty"`
	Problem string                         `json:"problem,omitempty"` // why this copy is not to be relied on
}

// NewControlView is the view of a state.
func NewControlView(st *control.State) (ControlView, error) {
	raw, err := json.Marshal(st)
	if err != nil {
		return ControlView{}, fmt.Errorf("encode the control plane: %w", err)
	}
	sum := sha256.Sum256(raw)
	return ControlView{
		Offset: st.Offset, Digest: hex.EncodeToString(sum[:]), Routes: st.Routes, Leases: st.Leases, Holds: []control.Role{},
		Behind: st.Behind,
	}, nil
}

func (a *App) controlz(w http.ResponseWriter, _ *http.Request) {
	if !a.begun.Ready() {
		httpapi.Fail(w, httpapi.Refuse(http.StatusServiceUnavailable, "wait until /readyz says so", "the instance is not ready"))
		return
	}
	if a.control == nil {
		httpapi.Fail(w, httpapi.Refuse(http.StatusNotFound, "ask a process with another service", "ingest follows no control log"))
		return
	}
	view, err := NewControlView(a.control.State())
	if err != nil {
		httpapi.Fail(w, err)
		return
	}
	for role, h := range a.roles {
		if h.Held() != nil {
			view.Holds = append(view.Holds, role)
		}
	}
	if err := a.control.Err(); err != nil {
		view.Problem = err.Error()
	}
	httpapi.Reply(w, http.StatusOK, view)
}
