package experiment

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"ctrloop/internal/httpapi"
	"ctrloop/internal/stats"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/exposure"
	"ctrloop/serving/experiment/ramp"
	"ctrloop/serving/experiment/webhook"
)

// pages answers the questions of the pages from the small world.
type pages struct {
	*traffic
	looks *looks
}

func (p pages) Categories(ctx context.Context, x control.Experiment, spans []Span) ([]CategorySums, error) {
	var out []CategorySums
	for i, name := range []string{"Books", "Garden"} {
		part := *p.traffic
		part.visits = slices.DeleteFunc(slices.Clone(p.visits), func(v visit) bool { return v.user%2 != i })
		s, err := part.Sums(ctx, x, spans)
		if err != nil {
			return nil, err
		}
		out = append(out, CategorySums{name, s})
	}
	return out, nil
}

func (p pages) Arrivals(context.Context, control.Experiment) ([]Arrivals, error) {
	seen := map[int]bool{}
	days := map[time.Time]*Arrivals{}
	for _, v := range p.visits {
		if seen[v.user] {
			continue
		}
		seen[v.user] = true
		day := v.at.UTC().Truncate(24 * time.Hour)
		if days[day] == nil {
			days[day] = &Arrivals{Day: day}
		}
		if v.treatment {
			days[day].Treatment++
		} else {
			days[day].Control++
		}
	}
	var out []Arrivals
	for _, d := range days {
		out = append(out, *d)
	}
	slices.SortFunc(out, func(a, b Arrivals) int { return a.Day.Compare(b.Day) })
	return out, nil
}

func (p pages) Multiple(ctx context.Context, x control.Experiment, spans []Span) (Multiple, error) {
	s, err := p.Sums(ctx, x, spans)
	return Multiple{Units: s.Control.N + s.Treatment.N}, err
}

func (p pages) Weighted(_ context.Context, _ control.Experiment, parts []Part) (ramp.Sums, error) {
	type key struct {
		user      int
		treatment bool
	}
	per := map[key][2]float64{}
	for _, part := range parts {
		for _, v := range p.mature(part.Spans) {
			w := stats.OverlapWeight(1 - part.Share)
			if v.treatment {
				w = stats.OverlapWeight(part.Share)
			}
			k := key{v.user, v.treatment}
			per[k] = [2]float64{per[k][0] + w*v.m, per[k][1] + w*v.d}
		}
	}
	var s ramp.Sums
	for k, v := range per {
		arm := &s.Control
		if k.treatment {
			arm = &s.Treatment
		}
		arm.Observe(v[0], v[1])
	}
	return s, nil
}

func (p pages) Looks(_ context.Context, id string, limit int) ([]LookRow, error) {
	var out []LookRow
	for _, l := range p.looks.seen {
		f := l.Figures
		out = append(
			out,
			LookRow{
				l.Time,
				l.Step.Number(),
				l.Step.Share,
				string(l.Action),
				string(l.Rule),
				f.Relative,
				f.RelativeLow,
				f.RelativeHigh,
				f.P,
				f.SRMP,
				f.Control.Impressions + f.Treatment.Impressions,
			},
		)
	}
	return out[max(0, len(out)-limit):], nil
}

func (pages) Expose(context.Context, []exposure.Exposure) error { return nil }

type noHooks struct{}

func (noHooks) Status() []webhook.Status {
	return []webhook.Status{{Name: "chat", GaveUp: []webhook.Failure{}}}
}
func (noHooks) Replay(string, string, int64) (int, error) { return 3, nil }

// Every request of docs/experiments.md is made, in order, and its answer must hold what the page shows: an object may
// leave keys out, a list its tail, and numbers are rounded. Between requests a line "after N hours" lets time pass.
func TestTheDocumentedExamples(t *testing.T) {
	raw, err := os.ReadFile("../../docs/experiments.md")
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, 1)
	p := pages{r.world, r.looks}
	r.d.Reports, r.d.Exposures, r.d.Hooks = p, p, noHooks{}
	r.d.Health = healthFunc(func() ramp.Counts { return ramp.Counts{Total: 640, Failed: 3} })
	h := r.Handler()
	requests, answers := 0, 0
	var body []byte
	var what string
	for i, block := range strings.Split(string(raw), "```") {
		if i%2 == 0 {
			continue
		}
		kind, text, _ := strings.Cut(block, "\n")
		switch kind {
		case "http":
			lines := strings.SplitN(strings.TrimSpace(text), "\n", 2)
			for strings.HasPrefix(lines[0], "after ") {
				var hours int
				if _, err := fmt.Sscanf(lines[0], "after %d hours", &hours); err != nil {
					t.Fatalf("%q: %v", lines[0], err)
				}
				for range hours {
					r.world.hour(r.log.st, 1200, 0.04, 0.056)
					if err := r.LookAll(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				lines = strings.SplitN(lines[1], "\n", 2)
			}
			method, path, _ := strings.Cut(lines[0], " ")
			var in io.Reader
			if len(lines) > 1 {
				in = strings.NewReader(lines[1])
			}
			r.world.now = r.world.now.Add(time.Second)
			rec := httptest.NewRecorder()
			req := httptest.NewRequestWithContext(t.Context(), method, path, in)
			req.Header.Set(httpapi.HeaderRequestID, "9f41c07be2d85a36")
			h.ServeHTTP(rec, req)
			body, what = rec.Body.Bytes(), lines[0]
			requests++
		case "json", "csv":
			if what == "" {
				t.Fatalf("an answer without a request: %s", text)
			}
			answers++
			if kind == "csv" {
				if !strings.HasPrefix(string(body), text) {
					t.Errorf("%s answers\n%s\nthe page has\n%s", what, body, text)
				}
				break
			}
			var got, want any
			if err := json.Unmarshal(body, &got); err != nil {
				t.Fatalf("%s: %s: %v", what, body, err)
			}
			if err := json.Unmarshal([]byte(text), &want); err != nil {
				t.Fatalf("the page's answer to %s: %v", what, err)
			}
			if at := differs("", want, got); at != "" {
				pretty, _ := json.MarshalIndent(got, "", "  ")
				t.Errorf("%s: the page differs at %s from\n%s", what, at, pretty)
			}
			what = ""
		}
	}
	if requests < 15 || answers < 12 {
		t.Errorf("only %d requests and %d answers are on the page", requests, answers)
	}
}

// differs is the place of the first difference between what is written and what is answered; empty: none.
func differs(at string, want, got any) string {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return cmp.Or(at, "/")
		}
		for k, v := range w {
			if _, ok := g[k]; !ok {
				return at + "/" + k
			}
			if d := differs(at+"/"+k, v, g[k]); d != "" {
				return d
			}
		}
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) < len(w) {
			return cmp.Or(at, "/")
		}
		for i, v := range w {
			if d := differs(fmt.Sprintf("%s/%d", at, i), v, g[i]); d != "" {
				return d
			}
		}
	case float64:
		if g, ok := got.(float64); !ok || math.Abs(g-w) > 0.005*math.Abs(w)+1e-12 {
			return cmp.Or(at, "/")
		}
	default:
		if want != got {
			return cmp.Or(at, "/")
		}
	}
	return ""
}

// manyLooks has more looks on record than an answer holds.
type manyLooks struct{ pages }

func (manyLooks) Looks(_ context.Context, _ string, limit int) ([]LookRow, error) {
	out := make([]LookRow, min(limit, maxLooks+5))
	out[len(out)-1].Impressions = 7 // the newest
	return out, nil
}

// An export that leaves old looks out says so.
func TestExportSaysWhatItLeavesOut(t *testing.T) {
	r := newRig(t, 3, 0.5, 1)
	for _, c := range []struct {
		reports Reports
		cut     bool
	}{{manyLooks{pages{r.world, r.looks}}, true}, {pages{r.world, r.looks}, false}} {
		r.d.Reports = c.reports
		code, v := call(t, r.Handler(), "GET", "/v1/experiments/e/export", "")
		rows, _ := v["looks"].([]any)
		if cut := v["looks_truncated"] == true; code != 200 || cut != c.cut || len(rows) > maxLooks {
			t.Errorf("%d: %d looks, truncated %v, want %v", code, len(rows), cut, c.cut)
		}
		if c.cut && rows[len(rows)-1].(map[string]any)["impressions"] != 7. {
			t.Error("the newest look is not the last")
		}
	}
}
