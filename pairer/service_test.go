package pairer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/artifact"
	"ctrloop/internal/columnar"
	"ctrloop/internal/controllog"
	"ctrloop/internal/telemetry/telemetrytest"
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
	failed    error // what it failed with
	toMS      int64 // end of the evidence
	noPicture map[string]bool
	// failPublish is the error of the topic of pairs.
	failPublish error
}

func newShop(products int) *shop {
	s := &shop{st: control.NewState(), published: map[string]int{}, toMS: 2000}
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
	return s.evidence, pairs.Span{FromMS: 1000, ToMS: s.toMS}, nil
}
func (s *shop) Creative(id string) (schemas.Creative, bool) {
	product := "p-" + strings.Split(id, "-")[1]
	return schemas.Creative{ID: id, Product: product, Description: "velvet drape"}, id != "c-unknown-0"
}
func (s *shop) View(c schemas.Creative) ([]byte, error) {
	if s.noPicture[c.ID] {
		return nil, errors.New("no such artifact")
	}
	return []byte("png of " + c.ID), nil
}
func (s *shop) Caption(p string) (string, bool) { return "caption of " + p, p != "p-gone" }
func (s *shop) State() *control.State           { return s.st.Clone() }
func (s *shop) Changed() <-chan struct{}        { return nil }
func (s *shop) Append(_ context.Context, e control.Event) (control.Answer, error) {
	if err := s.failNext; err != nil {
		s.failNext, s.failed = nil, err
		return "", err
	}
	return s.st.Apply(s.st.Offset+1, e)
}
func (s *shop) PublishPairs(_ context.Context, ps []schemas.Pair) error {
	if s.failPublish != nil {
		return s.failPublish
	}
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
		Deps{Source: s, Creatives: s, Lead: controllog.Alone(s), Publisher: s, Store: store, Log: zerolog.Nop(),
			Registry: prometheus.NewRegistry()},
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
		if s.st.Jobs[id] != nil {
			continue // an earlier cycle's
		}
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
	if _, err := p.look(t.Context(), p.d.Lead.Held()); !errors.Is(err, s.failNext) && err == nil {
		t.Fatal("the failure was not reported")
	}
	if got := look(t, p); got != "dataset" || len(s.st.Datasets) != 1 {
		t.Fatalf("%s, %d data sets", got, len(s.st.Datasets))
	}
	for id, n := range s.published {
		if n != 1 {
			t.Fatalf("pair %s was published %d times: of a data set that was not announced nothing is published", id, n)
		}
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

// S2: what a client makes up costs its own evidence and nothing else.
func TestWhatCannotBeLearnedFromIsLeftOut(t *testing.T) {
	for name, tc := range map[string]struct {
		add  pairs.Evidence
		want LeftOut
	}{
		"a creative that nobody made": {
			pairs.Evidence{Product: "p-1", Placement: "home", Creative: "c-unknown-0", Impressions: 1_000_000}, LeftOut{UnknownCreative: 1},
		},
		"a creative under another product": {
			pairs.Evidence{Product: "p-1", Placement: "home", Creative: "c-2-0", Impressions: 1_000_000}, LeftOut{OtherProduct: 1},
		},
		"a product that the catalogue lacks": {
			pairs.Evidence{Product: "p-gone", Placement: "home", Creative: "c-gone-0", Impressions: 1_000_000}, LeftOut{UnknownProduct: 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(60)
			cfg := Default()
			cfg.MinEffectivePairs = 100
			clean, _ := start(t, s, cfg)
			if got := look(t, clean); got != "dataset" {
				t.Fatal(got)
			}
			want := maps.Clone(s.st.Datasets)
			s = newShop(60)
			s.evidence = append(s.evidence, tc.add)
			p, _ := start(t, s, cfg)
			if got := look(t, p); got != "dataset" {
				t.Fatalf("%s: %s", got, p.Status().Reason)
			}
			if d := cmp.Diff(slices.Collect(maps.Keys(want)), slices.Collect(maps.Keys(s.st.Datasets))); d != "" {
				t.Errorf("the data set is another one than without it: %s", d)
			}
			if d := cmp.Diff(tc.want, p.Status().LeftOut); d != "" {
				t.Error(d)
			}
		})
	}
}

// S2: pictures are read last; one that is gone takes its pairs with it, and the trigger is asked again.
func TestACreativeWithoutPictureIsLeftOut(t *testing.T) {
	s := newShop(60)
	s.noPicture = map[string]bool{"c-1-0": true}
	cfg := Default()
	cfg.MinEffectivePairs = 100
	p, store := start(t, s, cfg)
	if got := look(t, p); got != "dataset" {
		t.Fatalf("%s: %s", got, p.Status().Reason)
	}
	for digest := range s.st.Datasets {
		rows, err := dataset.Pairs(store.Path(digest))
		if err != nil || len(rows) != 178 {
			t.Errorf("%d pairs (%v), want 178: two of the 180 name the creative", len(rows), err)
		}
	}
	if got := p.Status().LeftOut[NoPicture]; got != 1 {
		t.Errorf("left out: %v", p.Status().LeftOut)
	}
	s = newShop(60)
	s.noPicture = map[string]bool{}
	for _, e := range s.evidence {
		s.noPicture[e.Creative] = true
	}
	p, _ = start(t, s, cfg)
	if got := look(t, p); got != "skip" || len(s.st.Datasets) != 0 || p.Status().LeftOut[NoPicture] != 180 {
		t.Errorf("without any picture: %s, %d data sets, %+v", got, len(s.st.Datasets), p.Status())
	}
}

// S3: what counts is how much the belief in pairs has changed, not whether their names are new.
func TestAShelfThatTurnsAroundIsLearnedFromAgain(t *testing.T) {
	s := newShop(60)
	cfg := Default()
	cfg.MinEffectivePairs = 100
	p, _ := start(t, s, cfg)
	if got := look(t, p); got != "dataset" {
		t.Fatal(got)
	}
	endCycle(t, s)
	for i := range s.evidence { // ten times the evidence, the order of creatives reversed
		e := &s.evidence[i]
		e.Impressions *= 10
		e.Clicks = 10 * (160 - e.Clicks)
	}
	s.toMS = 3000
	if got := look(t, p); got != "dataset" || p.Status().Effective < 250 {
		t.Fatalf("%s: %+v; 144 training pairs or so have turned around, each is worth 2", got, p.Status())
	}
	endCycle(t, s)
	if got := look(t, p); got != "skip" || p.Status().Effective != 0 {
		t.Errorf("the same evidence again: %s, worth %v", got, p.Status().Effective)
	}
	restarted, _ := New(cfg, Deps{Source: s, Creatives: s, Lead: controllog.Alone(s), Publisher: s, Store: p.d.Store,
		Registry: prometheus.NewRegistry()})
	if got := look(t, restarted); got != "skip" || restarted.Status().Effective != 0 {
		t.Errorf("the same evidence after a restart: %s, worth %v", got, restarted.Status().Effective)
	}
}

func TestInformationIsTheChangeOfBelief(t *testing.T) {
	key := func(a, b string) pairKey { return pairKey{"p", "home", a, b} }
	before := beliefs{key("a", "b"): 0.8, key("a", "c"): 0.5, key("b", "c"): -1}
	for _, tc := range []struct {
		name   string
		now    beliefs
		capped bool
		want   float64
	}{
		{"nothing has changed", before, false, 0},
		{"one is surer", beliefs{key("a", "b"): 1, key("a", "c"): 0.5, key("b", "c"): -1}, false, 0.2},
		{"one has turned around", beliefs{key("a", "b"): -0.8, key("a", "c"): 0.5, key("b", "c"): -1}, false, 1.6},
		{"one is new", beliefs{key("a", "b"): 0.8, key("a", "c"): 0.5, key("b", "c"): -1, key("a", "d"): 0.7}, false, 0.7},
		{"one is a tie now", beliefs{key("a", "b"): 0.8, key("b", "c"): -1}, false, 0.5},
		{"one was crowded out", beliefs{key("a", "b"): 0.8, key("b", "c"): -1}, true, 0},
		{"everything is new", nil, false, 2.3},
	} {
		if got := information(tc.now, before, tc.capped); math.Abs(got-tc.want) > 1e-12 {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// S7: one data set for the same evidence, however the warehouse orders its rows.
func TestOneDatasetForAllOrdersOfRows(t *testing.T) {
	digests := map[string]bool{}
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		s := newShop(60)
		for i := range s.evidence {
			s.evidence[i].Clicks += int64(i % 7)
		}
		r.Shuffle(len(s.evidence), func(i, j int) { s.evidence[i], s.evidence[j] = s.evidence[j], s.evidence[i] })
		cfg := Default()
		cfg.MinEffectivePairs = 100
		p, _ := start(t, s, cfg)
		if got := look(t, p); got != "dataset" {
			t.Fatal(got)
		}
		for d := range s.st.Datasets {
			digests[d] = true
		}
	}
	if len(digests) != 1 {
		t.Errorf("20 orders of the same rows are %d data sets", len(digests))
	}
}

// S7: whatever is on pairs.v1 belongs to a data set, and the pairs of every data set get there.
func TestACrashLeavesNoPairsWithoutTheirDataset(t *testing.T) {
	cfg := Default()
	cfg.MinEffectivePairs = 100
	s := newShop(60)
	s.failNext = errors.New("killed before the announcement")
	p, _ := start(t, s, cfg)
	if _, err := p.look(t.Context(), p.d.Lead.Held()); !errors.Is(err, s.failed) || s.failed == nil {
		t.Fatal(err)
	}
	s.evidence[0].Clicks += 5 // traffic goes on, so the data set of the next look is another one
	s.failPublish = errors.New("killed between the announcement and the pairs")
	if _, err := p.look(t.Context(), p.d.Lead.Held()); !errors.Is(err, s.failPublish) {
		t.Fatal(err)
	}
	s.failPublish = nil
	next, err := New(cfg, Deps{Source: s, Creatives: s, Lead: controllog.Alone(s), Publisher: s, Store: p.d.Store,
		Registry: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	if got := look(t, next); got != "skip" { // the cycle of the announced one is open
		t.Fatal(got)
	}
	if len(s.st.Datasets) != 1 {
		t.Fatalf("%d data sets", len(s.st.Datasets))
	}
	for digest := range s.st.Datasets {
		rows, err := dataset.Pairs(p.d.Store.Path(digest))
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]int{}
		for _, r := range rows {
			want[r.PairID] = 1
		}
		if d := cmp.Diff(want, s.published); d != "" {
			t.Errorf("published pairs are not those of the data set: %s", d)
		}
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

// S9: a pairer that cannot look says so, and is well again as soon as it can, or when another process leads.
func TestAPairerThatCannotLookSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &refusing{shop: newShop(4)}
		p, _ := start(t, s.shop, Default())
		gate, work := telemetrytest.NewGate(nil)
		p.d.Work, p.d.Source = work, s
		s.err.Store(true)
		run := func() (stop func()) {
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- p.Run(ctx) }()
			return func() { cancel(); <-ended }
		}
		stop := run()
		if reason := gate.Await(t, false); !strings.Contains(reason, "no right to read") {
			t.Errorf("the reason is %q", reason)
		}
		s.err.Store(false)
		gate.Await(t, true)
		s.err.Store(true)
		gate.Await(t, false)
		stop() // as when the lease is lost
		gate.Await(t, true)
	})
}

// refusing is a shop whose evidence may not be read.
type refusing struct {
	*shop
	err atomic.Bool
}

func (r *refusing) Evidence(ctx context.Context) ([]pairs.Evidence, pairs.Span, error) {
	if r.err.Load() {
		return nil, pairs.Span{}, errors.New("no right to read")
	}
	return r.shop.Evidence(ctx)
}
