package experiment

import (
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"io"
	"math"
	"net/http"
	"strconv"

	"ctrloop/internal/httpapi"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/ramp"
)

// Export is everything about an experiment, as /export?format=json gives it.
type Export struct {
	Results    Results    `json:"results"`
	Categories []Category `json:"categories"`
	Exposures  []Exposure `json:"exposures"`
	Looks      []LookRow  `json:"looks"`                     // the newest maxLooks
	LooksCut   bool       `json:"looks_truncated,omitempty"` // there are older ones, in the table experiment_looks
}

func (s *Service) exported(ctx context.Context, st *control.State, x control.ExperimentStatus) (Export, error) {
	var e Export
	var errs [4]error
	e.Results, errs[0] = s.Results(ctx, st, x)
	e.Categories, errs[1] = s.Categories(ctx, x)
	e.Exposures, errs[2] = s.Exposures(ctx, x)
	if s.d.Reports != nil {
		e.Looks, errs[3] = s.d.Reports.Looks(ctx, x.ID, maxLooks+1)
		if older := len(e.Looks) - maxLooks; older > 0 {
			e.Looks, e.LooksCut = e.Looks[older:], true
		}
	}
	return e, errors.Join(errs[:]...)
}

func (s *Service) export(w http.ResponseWriter, r *http.Request) {
	format := cmp.Or(r.URL.Query().Get("format"), "json")
	if format != "json" && format != "csv" {
		httpapi.Fail(w, httpapi.Refuse(http.StatusUnprocessableEntity, "want json or csv", "format %q", format))
		return
	}
	if format == "json" {
		s.page(w, r, func(st *control.State, x control.ExperimentStatus) (any, error) {
			return s.exported(r.Context(), st, x)
		})
		return
	}
	st := s.d.Control.State()
	x, ok := s.find(w, r, st)
	if !ok {
		return
	}
	e, err := s.exported(r.Context(), st, x)
	if err != nil {
		httpapi.Fail(w, httpapi.Refuse(http.StatusServiceUnavailable, "the experiment goes on as it is; try again", "%v", err))
		return
	}
	w.Header().Set("Content-Type", "text/csv; charset=utf-8")
	w.Header().Set("Content-Disposition", `attachment; filename="`+x.ID+`.csv"`)
	_ = e.CSV(w) // the client has gone
}

// CSV writes one row per arm and step, then per arm and category: the numbers behind every rate.
func (e Export) CSV(w io.Writer) error {
	out := csv.NewWriter(w)
	num := func(n ramp.Num) string {
		if f := float64(n); f-f == 0 {
			return strconv.FormatFloat(f, 'g', -1, 64)
		}
		return ""
	}
	row := func(part, name, variant string, a ramp.Arm, lift, low, high, p ramp.Num) error {
		return out.Write(
			[]string{e.Results.Experiment.ID, part, name, variant, strconv.FormatInt(a.Units, 10), strconv.FormatInt(a.Impressions, 10),
				strconv.FormatInt(a.Clicks, 10), num(a.CTR), num(a.Low), num(a.High), num(lift), num(low), num(high), num(p)},
		)
	}
	none := ramp.Num(math.NaN())
	err := out.Write(
		[]string{
			"experiment",
			"part",
			"name",
			"variant",
			"units",
			"impressions",
			"clicks",
			"ctr",
			"ctr_low",
			"ctr_high",
			"lift",
			"lift_low",
			"lift_high",
			"p",
		},
	)
	for _, f := range e.Results.Steps {
		name := strconv.FormatFloat(f.Step.Share, 'g', -1, 64)
		err = errors.Join(
			err,
			row("step", name, "control", f.Control, none, none, none, none),
			row("step", name, "treatment", f.Treatment, f.Relative, f.RelativeLow, f.RelativeHigh, f.P),
		)
	}
	for _, c := range e.Categories {
		err = errors.Join(
			err,
			row("category", c.Category, "control", c.Control, none, none, none, none),
			row("category", c.Category, "treatment", c.Treatment, c.Relative, c.RelativeLow, c.RelativeHigh, c.P),
		)
	}
	out.Flush()
	return errors.Join(err, out.Error())
}
