package pairer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/artifact"
	"ctrloop/internal/columnar"
	"ctrloop/internal/controllog"
	"ctrloop/pairer/dataset"
	"ctrloop/pairer/pairs"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
)

// shop is everything around the pairer, in memory.
type shop struct {
	st        *control.State
	evidence  []pairs.Evidence
	published map[string]int
	failNext  error // of the control log, once
}

func newShop(products int) *shop {
	s := &shop{st: control.NewState(), published: map[string]int{}}
	for i := range products {
		for c := range 3 {
			s.evidence = append(s.evidence, pairs.Evidence{
				Product: fmt.Sprintf("p-%d", i), Category: "kitchen/mugs", Placement: "home",
				Creative: fmt.Sprintf("c-%d-%d", i, c), Impressions: 2000, Clicks: int64(40 + 40*c),
			})
		}
	}
	return s
}

func (s *shop) Evidence(context.Context) ([]pairs.Evidence, pairs.Span, error) {
	return s.evidence, pairs.Span{FromMS: 1000, ToMS: 2000}, nil
}
func (s *shop) Creative(id string) (schemas.Creative, bool) {
	product := "p-" + strings.Split(id, "-")[1]
	return schemas.Creative{ID: id, Product: product, Description: "velvet drape"}, id != "c-unknown-0"
}
func (s *shop) View(c schemas.Creative) ([]byte, error) { return []byte("png of " + c.ID), nil }
func (s *shop) Caption(p string) (string, bool)         { return "caption of " + p, true }
func (s *shop) State() *control.State                   { return s.st.Clone() }
func (s *shop) Changed() <-chan struct{}                { return nil }
func (s *shop) Append(_ context.Context, e control.Event) (control.Answer, error) {
	if err := s.failNext; err != nil {
		s.failNext = nil
		return "", err
	}
	return s.st.Apply(s.st.Offset+1, e)
}
func (s *shop) PublishPairs(_ context.Context, ps []schemas.Pair) error {
	for _, p := range ps {
		s.published[p.ID]++
	}
	return nil
}

func start(t *testing.T, s *shop, cfg Config) (*Service, *artifact.Store) {
	t.Helper()
	store, err := artifact.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(
		cfg,
		Deps{
			Source: s, Creatives: s, Lead: controllog.Alone(s), Publisher: s, Store: store,
			Log: zerolog.Nop(), Registry: prometheus.NewRegistry(),
		},
	)
	if err != nil {
		t.Fatal(err)
	}
	return p, store
}

func look(t *testing.T, p *Service) string {
	t.Helper()
	outcome, err := p.look(t.Context(), p.d.Lead.Held())
	if err != nil {
		t.Fatal(err)
	}
	return outcome
}

func TestEnoughNewEvidenceMakesOneDataset(t *testing.T) {
	s := newShop(60)
	cfg := Default()
	cfg.MinEffectivePairs = 100
	p, store := start(t, s, cfg)
	if got := look(t, p); got != "dataset" {
		t.Fatalf("first look: %s (%s)", got, p.Status().Reason)
	}
	if len(s.st.Datasets) != 1 || len(s.published) != 180 {
		t.Fatalf("%d data sets, %d pairs published of 180", len(s.st.Datasets), len(s.published))
	}
	for digest, d := range s.st.Datasets {
		rows, err := dataset.Pairs(store.Path(digest))
		if err != nil || len(rows) != 180 || d.Pairs != 180 || d.ToMS != 2000 {
			t.Fatalf("%d rows, %+v, %v", len(rows), d, err)
		}
		for _, r := range rows {
			if hi, lo := r.LeftClicks, r.RightClicks; r.LeftWins != (hi > lo) || r.Weight < 0.9 {
				t.Errorf("pair %+v", r)
			}
		}
		cr, err := columnar.Read[dataset.CreativeRow](store.Path(digest) + "/" + dataset.CreativesFile)
		if err != nil || len(cr) != 180 || string(cr[0].ImagePNG) != "png of c-0-0" || cr[0].Caption != "caption of p-0" {
			t.Errorf("creatives: %d %v", len(cr), err)
		}
	}
	if got := look(t, p); got != "skip" || !strings.Contains(p.Status().Reason, "is in training") {
		t.Errorf("while the data set waits for its jobs: %s, %s", got, p.Status().Reason)
	}
	endCycle(t, s)
	if got := look(t, p); got != "skip" || p.Status().Effective != 0 {
		t.Errorf("the same evidence again: %s, worth %v", got, p.Status().Effective)
	}
}

// endCycle runs the last job of every data set and registers a version that failed its gates.
func endCycle(t *testing.T, s *shop) {
	t.Helper()
	put := func(typ control.Type, entity string, data any) { t.Helper(); s.put(t, typ, entity, data) }
	for digest := range s.st.Datasets {
		id := "rounds-" + digest[:12]
		put(control.JobSubmitted, control.JobEntity(id), control.Job{ID: id, Kind: "rounds", Datasets: []string{digest}})
		put(control.JobStarted, control.JobEntity(id), control.JobUpdate{Attempt: 1})
		put(control.JobFinished, control.JobEntity(id), control.JobUpdate{})
		if Busy(s.st) == "" {
			t.Error("between the job's end and the registration of its model another cycle could start")
		}
		v := "prompt-" + digest[:12]
		put(
			control.ModelRegistered,
			control.ModelEntity(v),
			control.Model{Version: v, Logical: "prompt", Base: "b", Job: id, Gates: []control.Gate{{Name: "valid"}}},
		)
	}
}

func TestAnInterruptedAnnouncementIsRepeatedAsTheSame(t *testing.T) {
	s := newShop(60)
	cfg := Default()
	cfg.MinEffectivePairs = 100
	p, _ := start(t, s, cfg)
	s.failNext = errors.New("broker away")
	if _, err := p.look(t.Context(), s); !errors.Is(err, s.failNext) && err == nil {
		t.Fatal("the failure was not reported")
	}
	if got := look(t, p); got != "dataset" || len(s.st.Datasets) != 1 {
		t.Fatalf("%s, %d data sets", got, len(s.st.Datasets))
	}
	for id, n := range s.published {
		if n != 2 {
			t.Fatalf("pair %s was published %d times: the second look must publish the same ids", id, n)
		}
	}
}

// What a failed cycle was to learn from is not used up: it is offered again, after a pause, as soon as there is more.
func TestTheEvidenceOfAFailedCycleIsStillNew(t *testing.T) {
	s := newShop(60)
	cfg := Default()
	cfg.MinEffectivePairs = 100
	p, _ := start(t, s, cfg)
	if got := look(t, p); got != "dataset" {
		t.Fatalf("first look: %s", got)
	}
	for digest := range s.st.Datasets {
		entity := control.JobEntity("reward-" + digest[:12])
		s.put(t, control.JobSubmitted, entity, control.Job{ID: "reward-" + digest[:12], Kind: "reward", Datasets: []string{digest}})
		s.put(t, control.JobFailed, entity, control.JobUpdate{Attempt: 1, Class: "out_of_memory"})
	}
	failed := time.Unix(1, 0)
	p.now = func() time.Time { return failed.Add(cfg.FailedPause - time.Second) }
	if got := look(t, p); got != "skip" || !strings.Contains(p.Status().Reason, "training failed") {
		t.Errorf("at once: %s, %s", got, p.Status().Reason)
	}
	p.now = func() time.Time { return failed.Add(cfg.FailedPause) }
	published := len(s.published)
	if got := look(t, p); got != "skip" || !strings.Contains(p.Status().Reason, "this very evidence") || len(s.published) != published {
		t.Errorf("the same evidence: %s, %s", got, p.Status().Reason)
	}
	s.evidence[0].Clicks += 100
	if got := look(t, p); got != "dataset" || len(s.st.Datasets) != 2 {
		t.Errorf("with a little more: %s, %s", got, p.Status().Reason)
	}
}

func (s *shop) put(t *testing.T, typ control.Type, entity string, data any) {
	t.Helper()
	e, err := control.NewEvent(entity+string(typ), typ, entity, -1, "test", "", time.Unix(1, 0), data)
	if err == nil {
		_, err = s.Append(t.Context(), e)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestNoCycleWhileOneIsOpen(t *testing.T) {
	s := newShop(60)
	cfg := Default()
	cfg.MinEffectivePairs = 1
	p, _ := start(t, s, cfg)
	e, err := control.NewEvent("1", control.JobSubmitted, control.JobEntity("j"), -1, "test", "", time.Unix(1, 0), control.Job{ID: "j"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.st.Apply(0, e); err != nil {
		t.Fatal(err)
	}
	if got := look(t, p); got != "skip" || !strings.Contains(p.Status().Reason, "job j is queued") {
		t.Errorf("%s: %s", got, p.Status().Reason)
	}
}

func TestAnUnknownCreativeIsAnErrorWithAWayOut(t *testing.T) {
	s := newShop(60)
	s.evidence = append(s.evidence, pairs.Evidence{Product: "p-1", Placement: "home", Creative: "c-unknown-0", Impressions: 2000, Clicks: 10})
	cfg := Default()
	cfg.MinEffectivePairs = 1
	p, _ := start(t, s, cfg)
	if _, err := p.look(t.Context(), s); err == nil || !strings.Contains(err.Error(), "c-unknown-0 has labels but is not in creatives.v1") {
		t.Errorf("%v", err)
	}
	if len(s.st.Datasets) != 0 {
		t.Error("a data set with a hole was announced")
	}
}

func TestTriggerExplainsItself(t *testing.T) {
	cfg := Default()
	for _, tc := range []struct {
		l    Look
		fire bool
		say  string
	}{
		{Look{Effective: 312}, false, "worth 312 of 1000"},
		{Look{Effective: 1200, Pairs: 5000}, true, "worth 1200"},
		{Look{Effective: 5000, Busy: "experiment x is running"}, false, "experiment x is running"},
	} {
		if fire, why := Trigger(cfg, tc.l); fire != tc.fire || !strings.Contains(why, tc.say) {
			t.Errorf("%+v: %v %q", tc.l, fire, why)
		}
	}
}

func TestConfigProblemsAreAllReported(t *testing.T) {
	err := Config{Policy: "best", HoldoutFraction: 1}.Validate()
	for _, path := range []string{"interval:", "policy:", "min_impressions:", "holdout_fraction:", "min_effective_pairs:"} {
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s is not reported in: %v", path, err)
		}
	}
}
