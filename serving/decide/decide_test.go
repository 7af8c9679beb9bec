package decide

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/controllog/controltest"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving/creatives"
	"ctrloop/serving/experiment/assign"
)

// shop has three products: both arms have creatives of the first (4 control, 2 treatment, 1 blocked), only control of
// the second, the third's are all blocked.
func shop() *creatives.Library {
	l := creatives.NewLibrary()
	put := func(product, version string, n int, blocked string) {
		for i := range n {
			id := fmt.Sprintf("c-%s-%s-%d%s", product, version, i, blocked)
			l.Put(schemas.Creative{ID: id, Product: product, ModelVersion: version, Valid: blocked == "", Blocked: blocked})
		}
	}
	put("p1", "v-control", 4, "")
	put("p1", "v-treatment", 2, "")
	put("p1", "v-treatment", 1, "bad")
	put("p2", "v-control", 3, "")
	put("p3", "v-control", 2, "bad")
	return l
}

func assigner(t testing.TB, experiment bool, share float64) *assign.Assigner {
	t.Helper()
	l := controltest.New()
	for _, v := range []string{"v-control", "v-treatment"} {
		l.Register(t, control.Model{Version: v, Logical: Logical})
		l.Shadow(t, v)
	}
	l.Promote(t, "v-control")
	if experiment {
		l.Put(
			t,
			control.ExperimentCreated,
			control.ExperimentEntity("e"),
			control.Experiment{
				ID:        "e",
				Logical:   Logical,
				Unit:      "user",
				Seed:      "s",
				Control:   "v-control",
				Treatment: "v-treatment",
				Steps:     []float64{share},
			},
		)
	}
	return assign.New(l.State())
}

func newService(t testing.TB, epsilon float64, a *assign.Assigner) *Service {
	t.Helper()
	cfg := Default()
	cfg.Epsilon, cfg.Seed = epsilon, 7
	s, err := New(cfg, shop(), a, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func requests(n int, product string) []Request {
	out := make([]Request, n)
	for i := range out {
		out[i] = Request{User: User(fmt.Sprint(i)), Product: product, Placement: "feed", Position: 2, TimeMS: 1_700_000_000_000 + int64(i)}
	}
	return out
}

func TestArmsAreStickyAndPropensitiesExact(t *testing.T) {
	s := newService(t, 0, assigner(t, true, 0.5))
	arm := map[User]string{}
	reqs := requests(4000, "p1")
	seen := map[string]map[string]int{}
	for range 10 {
		for i, d := range s.Decide(reqs, nil) {
			if d.Error != "" || d.Experiment != "e" || d.Policy != PolicyUniform {
				t.Fatalf("%+v", d)
			}
			if before := arm[reqs[i].User]; before != "" && before != d.Variant {
				t.Fatalf("user %s moved from %s to %s", reqs[i].User, before, d.Variant)
			}
			arm[reqs[i].User] = d.Variant
			if want := map[string]string{"control": "v-control", "treatment": "v-treatment"}[d.Variant]; d.ModelVersion != want {
				t.Fatalf("%s got version %s", d.Variant, d.ModelVersion)
			}
			if want := map[string]float64{"control": 1. / 8, "treatment": 1. / 4}[d.Variant]; d.Propensity != want || d.ArmShare != 0.5 {
				t.Fatalf("%s: propensity %v, want %v; share of the arm %v", d.Variant, d.Propensity, want, d.ArmShare)
			}
			if seen[d.Variant] == nil {
				seen[d.Variant] = map[string]int{}
			}
			seen[d.Variant][d.Creative]++
			id, err := schemas.ParseImpressionID(d.ImpressionID)
			if err != nil || id.UnixMilli() != reqs[i].TimeMS {
				t.Fatalf("impression %s at %v: %v", d.ImpressionID, id.Time(), err)
			}
		}
	}
	checkFrequencies(t, seen["control"], 4)
	checkFrequencies(t, seen["treatment"], 2)
}

// checkFrequencies holds observed choices against the propensity 1/k: five standard errors.
func checkFrequencies(t *testing.T, seen map[string]int, k int) {
	t.Helper()
	if len(seen) != k {
		t.Fatalf("%d creatives chosen, want %d", len(seen), k)
	}
	n := 0
	for _, c := range seen {
		n += c
	}
	p := 1 / float64(k)
	for id, c := range seen {
		if d := math.Abs(float64(c)-p*float64(n)) / math.Sqrt(float64(n)*p*(1-p)); d > 5 {
			t.Errorf("%s chosen %d times of %d, %.1f standard errors off", id, c, n, d)
		}
	}
}

func TestExplorationIsUniformOverEverythingAndLabelled(t *testing.T) {
	s := newService(t, 0.3, assigner(t, true, 0.5))
	seen := map[string]int{}
	explored, n := 0, 40_000
	for _, d := range s.Decide(requests(n, "p1"), nil) {
		if d.Variant != VariantExplore {
			continue
		}
		explored++
		seen[d.Creative]++
		// 0.3 of all six, and 0.7 of the draw within either arm.
		want := map[string]float64{"v-control": 0.3/6 + 0.7*0.5/4, "v-treatment": 0.3/6 + 0.7*0.5/2}[d.ModelVersion]
		if d.Experiment != "" || d.Policy != ExploredFrom("e") || d.ArmShare != 1 || math.Abs(d.Propensity-want) > 1e-15 {
			t.Fatalf("%+v", d)
		}
	}
	checkFrequencies(t, seen, 6) // the blocked one is not among them
	if share := float64(explored) / float64(n); math.Abs(share-0.3) > 0.012 {
		t.Errorf("explored %.3f of the traffic, want 0.3", share)
	}
}

func TestIntentionToTreat(t *testing.T) {
	s := newService(t, 0, assigner(t, true, 1))
	for _, d := range s.Decide(requests(50, "p2"), nil) {
		if d.Experiment != "e" || d.Variant != "treatment" || d.ModelVersion != "v-control" || d.Policy != PolicyFallback ||
			d.Propensity != 1./3 {
			t.Fatalf("%+v", d)
		}
	}
}

func TestWhatCannotBeFilled(t *testing.T) {
	s := newService(t, 0, assigner(t, false, 0))
	got := s.Decide([]Request{{Product: "p3"}, {Product: "nope"}, {User: "u", Product: "p1"}}, nil)
	for i, want := range []string{"no creative that may serve", `product "nope"`, ""} {
		if (got[i].Error == "") != (want == "") || !strings.Contains(got[i].Error, want) {
			t.Errorf("%d: %+v", i, got[i])
		}
	}
	if got[2].ModelVersion != "v-control" || got[2].Experiment != "" || got[2].Variant != "" {
		t.Errorf("without an experiment the champion serves: %+v", got[2])
	}
	s = newService(t, 0, assign.New(control.NewState()))
	if got := s.Decide(requests(1, "p1"), nil); !strings.Contains(got[0].Error, "champion") {
		t.Errorf("%+v", got[0])
	}
}

func TestSameSeedSameDecisions(t *testing.T) {
	a := newService(t, 0.1, assigner(t, true, 0.5)).Decide(requests(500, "p1"), nil)
	b := newService(t, 0.1, assigner(t, true, 0.5)).Decide(requests(500, "p1"), nil)
	if d := cmp.Diff(a, b); d != "" {
		t.Error(d)
	}
}

func call(s *Service, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/decide", strings.NewReader(body)))
	return w
}

func TestHTTP(t *testing.T) {
	s := newService(t, 0, assigner(t, true, 0.5))
	w := call(s, `{"user":18446744073709551615,"product":"p1","placement":"feed","position":1}`)
	var d Decision
	if err := json.Unmarshal(w.Body.Bytes(), &d); err != nil || w.Code != 200 || d.CreativeURL != "/v1/creatives/"+d.Creative+".png" {
		t.Fatalf("%d %s %v", w.Code, w.Body, err)
	}
	w = call(s, `{"requests":[{"user":"a","product":"p1"},{"user":1,"product":"nope"}]}`)
	var batch struct{ Decisions []Decision }
	if err := json.Unmarshal(w.Body.Bytes(), &batch); err != nil || w.Code != 200 || len(batch.Decisions) != 2 ||
		batch.Decisions[1].Error == "" {
		t.Fatalf("%d %s %v", w.Code, w.Body, err)
	}
	for body, code := range map[string]int{
		`{"product":"nope"}`:             404,
		`{"user":1.5,"product":"p1"}`:    400,
		`{"user":[1],"product":"p1"}`:    400,
		`[`:                              400,
		`{"product":"p1","prodct":"p1"}`: 400,
		`{"requests":[{"product":"p1","users":"u"}]}`:                                400,
		`{"user":"u","product":"p1"} x`:                                              400,
		`{"user":"u","product":"p1"}{}`:                                              400,
		`{"user":"u","product":"p1","time_ms":-5}`:                                   400,
		`{"user":"u","product":"p1","time_ms":281474976710656}`:                      400,
		`{"user":"u","product":"p1","attributes":{"a":[1]}}`:                         400,
		`{"user":"u","product":"p1","attributes":{"a":null}}`:                        400,
		`{"user":"u","product":"p1","attributes":{"age":37,"pro":true,"lang":"de"}}`: 200,
		`{"user":"u","product":"p1","force":"e:treatment"}`:                          200,
		`{"user":"u","product":"p1","force":"e:treatmnt"}`:                           400,
		`{"user":"u","product":"p1","force":"f:treatment"}`:                          400,
		`{"user":"u","product":"p1","force":"treatment"}`:                            400,
		`{"requests":[` + strings.Repeat(`{},`, MaxBatch) + `{}]}`:                   413,
	} {
		if w := call(s, body); w.Code != code {
			t.Errorf("%.40s: %d, want %d: %s", body, w.Code, code, w.Body)
		}
	}
	if w := call(s, `{"requests":[]}`); w.Code != 200 || w.Body.String() != `{"decisions":[]}` {
		t.Errorf("empty batch: %d %s", w.Code, w.Body)
	}
	// A user is the same whether written as a number or as text.
	variants := map[string]string{}
	for i := range 200 {
		for _, form := range []string{"%d", `"%d"`} {
			_ = json.Unmarshal(call(s, fmt.Sprintf(`{"user":`+form+`,"product":"p1"}`, i)).Body.Bytes(), &d)
			if v := variants[fmt.Sprint(i)]; v != "" && v != d.Variant {
				t.Fatalf("user %d is in %s and in %s", i, v, d.Variant)
			}
			variants[fmt.Sprint(i)] = d.Variant
		}
	}
}

func TestJSONIsWhatTheStandardLibraryWrites(t *testing.T) {
	for _, d := range []Decision{
		{}, {ImpressionID: "i", Creative: "c", CreativeURL: "http://x/y?a=1&b=<2>", Experiment: "é\"\\\n", Variant: "\x00\xff",
			Propensity: 1. / 3, Product: "p", Placement: "q", Position: 9, Error: "<&>"},
		{Propensity: 1}, {Propensity: 0.0001},
	} {
		want, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(d.append(nil))); diff != "" {
			t.Error(diff)
		}
	}
}

// BenchmarkDecide is a batch of 5,000 over HTTP's handler, JSON in and out. Its target is 50,000 a second and core.
func BenchmarkDecide(b *testing.B) {
	s := newService(b, 0.02, assigner(b, true, 0.5))
	var body bytes.Buffer
	body.WriteString(`{"requests":[`)
	for i := range MaxBatch {
		if i > 0 {
			body.WriteByte(',')
		}
		fmt.Fprintf(&body, `{"user":%d,"product":"p1","placement":"feed","position":%d,"time_ms":1700000000000}`, i*7919, i%10)
	}
	body.WriteString("]}")
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/decide", bytes.NewReader(body.Bytes())))
		if w.Code != 200 {
			b.Fatal(w.Body)
		}
	}
	b.ReportMetric(float64(b.N)*MaxBatch/b.Elapsed().Seconds(), "decisions/s")
}
