package creatives

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"image"
	"image/color"
	"image/png"
	"math"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"ctrloop/internal/artifact"
	"ctrloop/internal/catalogue"
	"ctrloop/internal/httpapi"
	"ctrloop/internal/imaging"
	"ctrloop/schemas"
	"ctrloop/serving/backend"
	"ctrloop/serving/route"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// writer is a prompt model that writes from a fixed list, by seed.
type writer struct {
	mu    sync.Mutex
	calls []backend.ChatRequest
	write func(r backend.ChatRequest, call, choice int) string
	fail  func(call int) error
}

func (w *writer) Chat(_ context.Context, r backend.ChatRequest) (*backend.ChatResponse, string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, r)
	call := len(w.calls)
	if w.fail != nil {
		if err := w.fail(call); err != nil {
			return nil, "", err
		}
	}
	resp := &backend.ChatResponse{Model: r.Model}
	for i := range r.N {
		var c backend.Choice
		c.Message.Content = w.write(r, call, i)
		resp.Choices = append(resp.Choices, c)
	}
	return resp, r.Model, nil
}

// grammatical gives well-formed descriptions, different for every seed and choice.
func grammatical(r backend.ChatRequest, _, choice int) string {
	v := imaging.Grammar()
	n := int(uint64(*r.Seed) % 1000)
	return fmt.Sprintf(
		" %s, %s tones, %s, %s\n",
		v.Scenes[(n+choice)%len(v.Scenes)],
		v.Palettes[n%len(v.Palettes)],
		v.Lights[n%len(v.Lights)],
		v.Props[n%len(v.Props)],
	)
}

type topic struct {
	mu  sync.Mutex
	got []schemas.Creative
}

func (t *topic) Publish(_ context.Context, cs ...schemas.Creative) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.got = append(t.got, cs...)
	return nil
}

type stage struct {
	*Service
	dir   string
	topic *topic
	store *artifact.Store
	model *writer
}

func newStage(t *testing.T, dir string, model *writer, drawer Drawer) *stage {
	t.Helper()
	cfg := Default()
	cfg.Dir, cfg.SizePx, cfg.PerProduct, cfg.Concurrency = filepath.Join(dir, "jobs"), 96, 4, 2
	store, err := artifact.Open(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{dir: dir, topic: &topic{}, store: store, model: model}
	s.Service, err = New(cfg, Deps{
		Products: catalogue.Embedded(), Model: model, Drawer: drawer, Store: store, Publisher: s.topic, Library: NewLibrary(),
		Prompting: Prompting{Instructions: []string{"one", "two"}, ViewPx: 64, Temperature: 1, MinP: 0.03, MaxTokens: 32},
		Resolve: func(m string) (string, error) {
			if m == "prompt" {
				return "prompt-1", nil
			}
			if !strings.HasPrefix(m, "prompt-") {
				return "", route.ErrUnknown
			}
			return m, nil
		},
	}, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// start runs the service until the test ends or stop is called.
func (s *stage) start(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func ids(n int) []string {
	var out []string
	for _, p := range catalogue.Embedded().Products()[:n] {
		out = append(out, p.ID)
	}
	return out
}

func (s *stage) finish(t *testing.T, r Request) Progress {
	t.Helper()
	j, err := s.submit(r, math.MaxInt)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := j.wait(ctx); err != nil {
		t.Fatal(err)
	}
	return j.progress()
}

func TestCreativesAreMadeCheckedAndServed(t *testing.T) {
	s := newStage(t, t.TempDir(), &writer{write: grammatical}, Scene{})
	s.start(t)
	products := ids(3)
	p := s.finish(t, Request{Products: products, Model: "prompt", Seed: 9})
	if p.State != Done || p.Done != 3 || p.Creatives != 12 || p.Blocked != 0 {
		t.Fatalf("%+v", p)
	}
	if got := s.Stats(); got != (Stats{Images: 12}) {
		t.Fatalf("%+v", got)
	}
	for _, id := range products {
		shelf := s.lib.Now().Shelf(id)
		if len(shelf.All) != 4 || len(shelf.ByVersion["prompt-1"]) != 4 {
			t.Fatalf("shelf %+v", shelf)
		}
		for _, c := range shelf.All {
			file, err := s.store.Bytes(c.Asset)
			if err != nil {
				t.Fatal(err)
			}
			prod, _ := catalogue.Embedded().Get(id)
			if blocked, e := guard(file, prod, 96, true); blocked != "" || e != 0 {
				t.Errorf("%s: %s", c.ID, blocked)
			}
			if c.Category != prod.Category || c.ModelVersion != "prompt-1" || c.Backend != "scene" || !c.Valid || c.Prior != 0.5 ||
				c.ID != "c-"+c.Asset[:16] ||
				strings.TrimSpace(c.Description) != c.Description {
				t.Errorf("%+v", c)
			}
			if !bytes.Contains(file, []byte("ctrloop:version\x00prompt-1")) {
				t.Error("the picture does not say where it is from")
			}
		}
	}
	if len(s.topic.got) != 12 {
		t.Errorf("%d published", len(s.topic.got))
	}
	req := s.model.calls[0]
	text := req.Messages[0].Content[1].Text
	if req.N != 4 || req.MinP != 0.03 || !strings.HasSuffix(text, ". one") && !strings.HasSuffix(text, ". two") ||
		!strings.HasPrefix(req.Messages[0].Content[0].ImageURL.URL, "data:image/png;base64,") {
		t.Errorf("request %+v", req)
	}
}

func TestTwoVersionsThatSayTheSameAreTwoCreatives(t *testing.T) {
	same := func(backend.ChatRequest, int, int) string {
		return grammatical(backend.ChatRequest{Seed: new(int64)}, 0, 0)
	}
	s := newStage(t, t.TempDir(), &writer{write: same}, Scene{})
	s.start(t)
	for _, v := range []string{"prompt-1", "prompt-2"} {
		if p := s.finish(t, Request{Products: ids(1), Model: v}); p.Creatives != 1 { // four descriptions, all alike
			t.Fatalf("%+v", p)
		}
	}
	shelf := s.lib.Now().Shelf(ids(1)[0])
	if len(shelf.All) != 2 || shelf.All[0].ID == shelf.All[1].ID || shelf.All[0].Seed != shelf.All[1].Seed {
		t.Fatalf("%+v", shelf.All)
	}
}

func TestInvalidDescriptionsAreBlockedAndAskedForAgain(t *testing.T) {
	w := &writer{write: func(r backend.ChatRequest, call, choice int) string {
		if call == 1 && choice < 2 {
			return fmt.Sprintf("gibberish %d", choice)
		}
		return grammatical(r, call, choice+call)
	}}
	s := newStage(t, t.TempDir(), w, Scene{})
	s.start(t)
	p := s.finish(t, Request{Products: ids(1), Model: "prompt"})
	if p.State != Done || p.Creatives != 4 || p.Blocked != 2 {
		t.Fatalf("%+v", p)
	}
	for _, c := range s.lib.Now().List(ids(1)[0], "", 100) {
		if bad := strings.HasPrefix(c.Description, "gibberish"); bad != (c.Blocked == BlockedInvalid) || bad == c.Valid {
			t.Errorf("%+v", c)
		}
	}
	if n := len(s.lib.Now().Shelf(ids(1)[0]).All); n != 4 {
		t.Errorf("%d may serve", n)
	}
}

// vandal draws one pixel onto the product.
type vandal struct{ Scene }

func (v vandal) Draw(ctx context.Context, p *catalogue.Product, text string, seed uint64, px int) (*image.NRGBA, bool, error) {
	im, ok, err := v.Scene.Draw(ctx, p, text, seed, px)
	for i, a := range imaging.Alpha(p, px) {
		if a == 255 {
			c := im.NRGBAAt(i%px, i/px)
			im.SetNRGBA(i%px, i/px, color.NRGBA{c.R ^ 1, c.G, c.B, 255})
			break
		}
	}
	return im, ok, err
}

func TestGuards(t *testing.T) {
	s := newStage(t, t.TempDir(), &writer{write: grammatical}, vandal{})
	s.start(t)
	p := s.finish(t, Request{Products: ids(1), Model: "prompt"})
	if p.State != Failed || len(p.Errors) != 1 {
		t.Fatalf("%+v", p)
	}
	if got := s.Stats(); got.PixelError != 1 || got.Blocked != got.Images {
		t.Errorf("%+v", got)
	}
	for _, c := range s.lib.Now().List("", "", 100) {
		if !strings.HasPrefix(c.Blocked, BlockedProduct) {
			t.Errorf("%+v", c)
		}
	}
	prod := catalogue.Embedded().Products()[0]
	var b bytes.Buffer
	if err := imaging.EncodePNG(&b, imaging.Plain(prod, 64)); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		file  []byte
		px    int
		valid bool
		want  string
	}{
		"sound":     {b.Bytes(), 64, true, ""},
		"truncated": {b.Bytes()[:b.Len()-20], 64, true, BlockedDecode},
		"size":      {b.Bytes(), 65, true, BlockedSize},
		"invalid":   {b.Bytes(), 64, false, BlockedInvalid},
	} {
		if got, _ := guard(tc.file, prod, tc.px, tc.valid); !strings.HasPrefix(got, tc.want) || (got == "") != (tc.want == "") {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestJobsSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	stuck := make(chan struct{})
	w := &writer{write: grammatical, fail: func(call int) error {
		if call == 3 {
			close(stuck)
		}
		if call >= 3 {
			return route.ErrUnknown // not ready: the service is patient, and is stopped meanwhile
		}
		return nil
	}}
	first := newStage(t, dir, w, Scene{})
	stop := first.start(t)
	req := Request{Products: ids(6), Model: "prompt", Seed: 1}
	p, err := first.Submit(req)
	if err != nil {
		t.Fatal(err)
	}
	<-stuck
	stop()
	// Crash in the middle of a line.
	f, err := os.OpenFile(filepath.Join(dir, "jobs", p.ID+".jsonl"), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString("\n{\"product\":\"" + ids(6)[5])
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "jobs", "junk.jsonl"), []byte("junk"), 0o644); err != nil {
		t.Fatal(err)
	}

	second := newStage(t, dir, &writer{write: grammatical}, Scene{})
	second.lib.Put(first.topic.got...) // what the topic holds
	if got, ok := second.Job(p.ID); !ok || got.State != Queued {
		t.Fatalf("after the restart: %+v", got)
	}
	second.start(t)
	done := second.finish(t, req)
	if done.ID != p.ID || done.State != Done || done.Done != 6 || done.Creatives != 24 {
		t.Fatalf("%+v", done)
	}
	if n := len(first.topic.got) + len(second.topic.got); n != 24 {
		t.Errorf("%d creatives were published in all, want 24: work was repeated or lost", n)
	}
	if again := second.finish(t, req); !cmp.Equal(again, done) {
		t.Errorf("asking again changed the job: %+v", again)
	}
	// The same work under another name finds that it is done.
	calls := len(second.model.calls)
	if err := ensureProducts(t, second, ids(6)); err != nil {
		t.Fatal(err)
	}
	if len(second.model.calls) != calls {
		t.Error("work that was done before was done again")
	}
}

func ensureProducts(t *testing.T, s *stage, products []string) error {
	p := s.finish(t, Request{Products: products, Model: "prompt-1", Seed: 999})
	if p.State != Done || p.Creatives != 4*len(products) {
		return fmt.Errorf("%+v", p)
	}
	return nil
}

func TestAFailedProductIsTriedAgainWhenAskedAgain(t *testing.T) {
	broken := true
	w := &writer{write: grammatical, fail: func(int) error {
		if broken {
			return &backend.Error{Kind: backend.Rejected, Op: "chat", Message: "no"}
		}
		return nil
	}}
	s := newStage(t, t.TempDir(), w, Scene{})
	s.start(t)
	if p := s.finish(t, Request{Products: ids(2), Model: "prompt"}); p.State != Failed || len(p.Errors) != 2 {
		t.Fatalf("%+v", p)
	}
	w.mu.Lock()
	broken = false
	w.mu.Unlock()
	if p := s.finish(t, Request{Products: ids(2), Model: "prompt"}); p.State != Done || len(p.Errors) != 0 {
		t.Fatalf("%+v", p)
	}
}

func TestSameSeedSameCreatives(t *testing.T) {
	var runs [][]string
	for range 2 {
		s := newStage(t, t.TempDir(), &writer{write: grammatical}, Scene{})
		s.start(t)
		s.finish(t, Request{Products: ids(2), Model: "prompt", Seed: 5})
		var got []string
		for _, c := range s.lib.Now().List("", "", 100) {
			got = append(got, c.ID)
		}
		runs = append(runs, got)
	}
	if !slices.Equal(runs[0], runs[1]) {
		t.Errorf("%v\n%v", runs[0], runs[1])
	}
}

func TestHTTP(t *testing.T) {
	s := newStage(t, t.TempDir(), &writer{write: grammatical}, Scene{})
	s.start(t)
	mux := httpapi.Open(s.Routes()...)
	do := func(method, path, body string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
		return w
	}
	product := ids(1)[0]
	w := do("POST", "/v1/creatives", fmt.Sprintf(`{"products":[%q],"per_product":2,"seed":3}`, product))
	if w.Code != 202 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	job := w.Header().Get("Location")
	var p Progress
	for p.State != Done {
		if err := json.Unmarshal(do("GET", job, "").Body.Bytes(), &p); err != nil || p.State == Failed {
			t.Fatal(p, err)
		}
		time.Sleep(time.Millisecond)
	}
	var list struct{ Creatives []schemas.Creative }
	if err := json.Unmarshal(do("GET", "/v1/creatives?product="+product, "").Body.Bytes(), &list); err != nil || len(list.Creatives) != 2 {
		t.Fatal(list, err)
	}
	id := list.Creatives[0].ID
	var c schemas.Creative
	if err := json.Unmarshal(do("GET", "/v1/creatives/"+id, "").Body.Bytes(), &c); err != nil || !cmp.Equal(c, list.Creatives[0]) {
		t.Fatal(c, err)
	}
	pic := do("GET", "/v1/creatives/"+id+".png", "")
	im, err := png.Decode(pic.Body)
	if err != nil || im.Bounds().Dx() != 96 || pic.Header().Get("Content-Type") != "image/png" ||
		!strings.Contains(pic.Header().Get("Cache-Control"), "immutable") {
		t.Fatal(pic.Header(), err)
	}
	for path, body := range map[string]string{
		"unknown product": `{"products":["nope"]}`, "unknown model": `{"products":"all","version":"x"}`, "no products": `{"products":[]}`,
		"odd products": `{"products":"some"}`, "per_product": `{"per_product":100000}`, "unknown field": `{"produkts":"all"}`, "junk": `{`,
	} {
		if w := do("POST", "/v1/creatives", body); w.Code != 400 {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	for _, path := range []string{"/v1/creatives/jobs/x", "/v1/creatives/x", "/v1/creatives/x.png"} {
		if w := do("GET", path, ""); w.Code != 404 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

// judgeFunc is a Judge of the test's own.
type judgeFunc func(description string) (float64, bool, error)

func (judgeFunc) Name() string { return "test" }

func (f judgeFunc) Score(_ context.Context, _ *catalogue.Product, description string, _ []byte) (float64, bool, error) {
	return f(description)
}

// What the judge says goes with the creative; what it cannot say stops nothing and leaves no score.
func TestCreativesAreScored(t *testing.T) {
	for name, tc := range map[string]struct {
		judge Judge
		want  schemas.Creative // Matching and MatchingJudge
	}{
		"scored": {judgeFunc(func(string) (float64, bool, error) { return 0.7, true, nil }),
			schemas.Creative{Matching: 0.7, MatchingJudge: "test"}},
		"does not suit": {judgeFunc(func(string) (float64, bool, error) { return 0, true, nil }), schemas.Creative{MatchingJudge: "test"}},
		"cannot tell":   {judgeFunc(func(string) (float64, bool, error) { return 0.7, false, nil }), schemas.Creative{}},
		"fails":         {judgeFunc(func(string) (float64, bool, error) { return 0.7, true, errors.New("no answer") }), schemas.Creative{}},
		"no number":     {judgeFunc(func(string) (float64, bool, error) { return math.NaN(), true, nil }), schemas.Creative{}},
		"nobody":        {nil, schemas.Creative{}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, t.TempDir(), &writer{write: grammatical}, Scene{})
			s.judge = tc.judge
			s.start(t)
			if p := s.finish(t, Request{Products: ids(1), Model: "prompt"}); p.State != Done {
				t.Fatalf("%+v", p)
			}
			for _, c := range s.topic.got {
				if c.Blocked != "" || c.Matching != tc.want.Matching || c.MatchingJudge != tc.want.MatchingJudge {
					t.Errorf("%+v", c)
				}
			}
		})
	}
}

// The rule of the shipped judge is the one by which the catalogue says what suits.
func TestCatalogueRule(t *testing.T) {
	suits := 0
	v := imaging.Grammar()
	for _, p := range catalogue.Embedded().Products()[:20] {
		for _, scene := range v.Scenes {
			for _, palette := range v.Palettes {
				text := fmt.Sprintf("%s, %s tones, %s, %s", scene, palette, v.Lights[0], v.Props[0])
				d, _, ok := imaging.Parse(text)
				if !ok {
					t.Fatalf("%q is not well formed", text)
				}
				score, told, err := CatalogueRule{}.Score(t.Context(), p, text, nil)
				if err != nil || !told || (score == 1) != p.Matches(d) || score != 0 && score != 1 {
					t.Fatalf("%s on %q: %g, %v, %v", p.ID, text, score, told, err)
				}
				suits += int(score)
			}
		}
	}
	if all := 20 * len(v.Scenes) * len(v.Palettes); suits == 0 || suits == all {
		t.Errorf("%d of %d suit", suits, all)
	}
	if _, told, _ := (CatalogueRule{}).Score(t.Context(), catalogue.Embedded().Products()[0], "a photo of somewhere nice", nil); told {
		t.Error("a text that it cannot read was scored")
	}
	own := *catalogue.Embedded().Products()[0]
	own.Department = "submarines"
	text := fmt.Sprintf("%s, %s tones, %s, %s", v.Scenes[0], v.Palettes[0], v.Lights[0], v.Props[0])
	if _, told, _ := (CatalogueRule{}).Score(t.Context(), &own, text, nil); told {
		t.Error("a department that the rule does not know was scored")
	}
}

// A judge elsewhere scores through the API, in the place of the score that a creative had.
func TestMatchingFromElsewhere(t *testing.T) {
	s := newStage(t, t.TempDir(), &writer{write: grammatical}, Scene{})
	s.judge = CatalogueRule{}
	s.start(t)
	s.finish(t, Request{Products: ids(1), Model: "prompt"})
	mux := httpapi.Open(s.Routes()...)
	c := s.topic.got[0]
	put := func(id, body string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("PUT", "/v1/creatives/"+id+"/matching", strings.NewReader(body)))
		return w
	}
	want := c
	want.Matching, want.MatchingJudge = 0.25, "clip-b32"
	w := put(c.ID, `{"score": 0.25, "judge": "clip-b32"}`)
	var got schemas.Creative
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 || !cmp.Equal(got, want) {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if kept, _ := s.lib.Now().Get(c.ID); kept != want {
		t.Errorf("kept %+v", kept)
	}
	if last := s.topic.got[len(s.topic.got)-1]; last != want {
		t.Errorf("published %+v", last)
	}
	for body, code := range map[string]int{
		`{"score": 1.5, "judge": "x"}`: 400, `{"score": -0.1, "judge": "x"}`: 400, `{"judge": "x"}`: 400, `{"score": 1}`: 400,
		`{"score": 1, "judge": "x", "note": 1}`: 400, `{`: 400,
		`{"score": 1, "judge": "` + strings.Repeat("x", 101) + `"}`: 400,
	} {
		if w := put(c.ID, body); w.Code != code {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	}
	if w := put("c-unknown", `{"score": 1, "judge": "x"}`); w.Code != 404 {
		t.Errorf("unknown creative: %d %s", w.Code, w.Body)
	}
}

// TestManyJobs: what waits is bounded, nobody waits for all of another's job, and a canceled one is gone for good
// (review V17).
func TestManyJobs(t *testing.T) {
	dir := t.TempDir()
	gate := make(chan struct{})
	drawer := gated{Scene{}, gate}
	s := newStage(t, dir, &writer{write: grammatical}, drawer)
	s.cfg.MaxQueued = 800
	all := catalogue.Embedded().Products()
	ids := func(n int) (out []string) {
		for _, p := range all[:n] {
			out = append(out, p.ID)
		}
		return out
	}
	big, err := s.Submit(Request{Products: ids(100), Model: "prompt", PerProduct: 4, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	small, err := s.Submit(Request{Products: ids(1), Model: "prompt", PerProduct: 1, Seed: 2})
	if err != nil {
		t.Fatal(err)
	}
	gone, err := s.Submit(Request{Products: ids(90), Model: "prompt", PerProduct: 4, Seed: 3})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Submit(Request{Products: ids(40), Model: "prompt", PerProduct: 4, Seed: 4}); !errors.Is(err, ErrFull) {
		t.Fatalf("the fourth: %v", err)
	}
	if p, ok := s.Cancel(gone.ID); !ok || p.State != Canceled {
		t.Fatalf("%+v", p)
	}
	if _, ok := s.Cancel(gone.ID); ok {
		t.Fatal("canceled twice")
	}
	stop := s.start(t)
	// Two products of the large job are one turn; then it is the small one's.
	for range 2*4 + 1 {
		gate <- struct{}{}
	}
	if err := s.jobs[small.ID].wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p, _ := s.Job(big.ID); p.State == Done {
		t.Fatalf("%+v", p)
	}
	if p, ok := s.Cancel(big.ID); !ok || p.State != Canceled {
		t.Errorf("a job at work could not be canceled: %+v", p)
	}
	stop()
	again := newStage(t, dir, &writer{write: grammatical}, drawer)
	if len(again.queue) != 0 {
		t.Errorf("%d jobs came back", len(again.queue))
	}
	if j, err := again.Submit(Request{Products: ids(90), Model: "prompt", PerProduct: 4, Seed: 3}); err != nil || j.State != Queued {
		t.Errorf("asked for again: %+v, %v", j, err)
	}
}

// gated draws when it is let.
type gated struct {
	Drawer
	gate chan struct{}
}

func (g gated) Draw(ctx context.Context, p *catalogue.Product, text string, seed uint64, px int) (*image.NRGBA, bool, error) {
	select {
	case <-ctx.Done():
		return nil, false, ctx.Err()
	case <-g.gate:
		return g.Drawer.Draw(ctx, p, text, seed, px)
	}
}

// TestAJobFileWithoutItsFirstLine is what a crash left: the job can be made again (review V11).
func TestAJobFileWithoutItsFirstLine(t *testing.T) {
	dir := t.TempDir()
	s := newStage(t, dir, &writer{write: grammatical}, Scene{})
	p, err := s.Submit(Request{Products: []string{catalogue.Embedded().Products()[0].ID}, Model: "prompt"})
	if err != nil {
		t.Fatal(err)
	}
	file := s.jobs[p.ID].file
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, whole[:len(whole)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	s = newStage(t, dir, &writer{write: grammatical}, Scene{})
	if _, err := s.Submit(Request{Products: []string{catalogue.Embedded().Products()[0].ID}, Model: "prompt"}); err != nil {
		t.Fatal(err)
	}
	if s = newStage(t, dir, &writer{write: grammatical}, Scene{}); len(s.queue) != 1 {
		t.Errorf("%d jobs after a restart", len(s.queue))
	}
}

// TestAPictureThatDeclaresTooMuch is refused before it is decoded (review V11).
func TestAPictureThatDeclaresTooMuch(t *testing.T) {
	var b bytes.Buffer
	if err := png.Encode(&b, image.NewGray(image.Rect(0, 0, 1, 1))); err != nil {
		t.Fatal(err)
	}
	raw := b.Bytes()
	copy(raw[16:24], []byte{0, 0, 0x78, 0, 0, 0, 0x78, 0}) // 30720 x 30720
	binary.BigEndian.PutUint32(raw[29:], crc32.ChecksumIEEE(raw[12:29]))
	answer, _ := json.Marshal(map[string]any{"data": []any{map[string]any{"b64_json": raw}}})
	if _, err := readEdit(answer, 96); err == nil || !strings.Contains(err.Error(), "30720x30720") {
		t.Errorf("%v", err)
	}
}
