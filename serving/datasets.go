package serving

import (
	"cmp"
	"net/http"
	"slices"

	"ctrloop/internal/httpapi"
	"ctrloop/schemas/control"
)

// DatasetRow is a data set as GET /v1/datasets lists it.
type DatasetRow struct {
	control.Dataset
	Jobs     []string `json:"jobs"`     // that learn from it, by name
	Failed   []string `json:"failed"`   // of them
	Versions []string `json:"versions"` // of models that came of it
}

// datasets answers GET /v1/datasets: every data set, the newest first, and what became of it.
func (s *Service) datasets(w http.ResponseWriter, _ *http.Request) {
	st := s.d.Control.State()
	rows := make([]DatasetRow, 0, len(st.Datasets))
	for digest, d := range st.Datasets {
		row := DatasetRow{Dataset: d, Jobs: []string{}, Failed: []string{}, Versions: []string{}}
		for id, j := range st.Jobs {
			if !slices.Contains(j.Datasets, digest) {
				continue
			}
			row.Jobs = append(row.Jobs, id)
			if j.State == control.JobBroken {
				row.Failed = append(row.Failed, id)
			}
		}
		for v, m := range st.Models {
			if m.Dataset == digest {
				row.Versions = append(row.Versions, v)
			}
		}
		for _, names := range [][]string{row.Jobs, row.Failed, row.Versions} {
			slices.Sort(names)
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b DatasetRow) int {
		return cmp.Or(cmp.Compare(b.BuiltMS, a.BuiltMS), cmp.Compare(b.ToMS, a.ToMS), cmp.Compare(a.Digest, b.Digest))
	})
	httpapi.Reply(w, http.StatusOK, map[string]any{"datasets": rows})
}
