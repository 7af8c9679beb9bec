package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ctrloop/internal/config"
	"ctrloop/schemas/control"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
)

const secret = "0123456789abcdef"

// memoryLog is the control log without a broker.
type memoryLog struct {
	mu      sync.Mutex
	st      *control.State
	n       int64
	changed chan struct{}
}

func newLog() *memoryLog {
	l := &memoryLog{st: control.NewState(), changed: make(chan struct{})}
	for _, v := range []string{"a", "b"} {
		l.apply(control.ModelRegistered, control.ModelEntity(v), control.Model{Version: v, Logical: "prompt"})
		for _, s := range []control.ModelState{control.ModelLoaded, control.ModelProbed} {
			l.apply(control.ModelStateChanged, control.ModelEntity(v), control.ModelStateChange{State: s})
		}
	}
	l.apply(control.ModelPromoted, control.RouteEntity("prompt"), control.Promotion{Logical: "prompt", Version: "a"})
	l.n = 0
	return l
}

func (l *memoryLog) apply(typ control.Type, entity string, data any) {
	l.n--
	e, err := control.NewEvent(fmt.Sprint(l.n), typ, entity, -1, "ada", "why", time.Unix(1, 0), data)
	if err == nil {
		_, err = l.st.Apply(l.n, e)
	}
	if err != nil {
		panic(err)
	}
}

func (l *memoryLog) State() *control.State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.st.Clone()
}

func (l *memoryLog) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

func (l *memoryLog) do(t *testing.T, typ control.Type, id string, data any) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n++
	e, err := control.NewEvent(fmt.Sprint(l.n), typ, control.ExperimentEntity(id), -1, "ada", "why", time.Unix(1000+l.n, 0), data)
	if err == nil {
		_, err = l.st.Apply(l.n, e)
	}
	if err != nil {
		t.Fatal(err)
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *memoryLog) create(t *testing.T, id string) {
	t.Helper()
	l.do(
		t,
		control.ExperimentCreated,
		id,
		control.Experiment{ID: id, Logical: "prompt", Control: "a", Treatment: "b", Steps: []float64{0.1, 0.5}},
	)
}

// receiver answers with the given statuses in turn, the last one for ever. Status 0 breaks the connection.
type receiver struct {
	t        *testing.T
	statuses []int
	at       []time.Time
	got      []Payload // accepted
	bodies   map[string][]byte
}

func (r *receiver) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		r.t.Error(err)
	}
	if err := Verify([]byte(secret), req.Header.Get(HeaderSignature), body, time.Now(), time.Minute); err != nil {
		r.t.Error(err)
	}
	var p Payload
	if err := json.Unmarshal(body, &p); err != nil || p.Delivery != req.Header.Get(HeaderDelivery) ||
		string(p.Type) != req.Header.Get(HeaderEvent) {
		r.t.Errorf("body %s does not go with %v: %v", body, req.Header, err)
	}
	if r.bodies == nil {
		r.bodies = map[string][]byte{}
	}
	if old := r.bodies[p.Delivery]; old != nil && !bytes.Equal(old, body) {
		r.t.Errorf("delivery %s came as %s and as %s", p.Delivery, old, body)
	}
	r.bodies[p.Delivery] = body
	r.at = append(r.at, time.Now())
	status := r.statuses[0]
	if len(r.statuses) > 1 {
		r.statuses = r.statuses[1:]
	}
	if status == 0 {
		return nil, errors.New("connection reset")
	}
	if status/100 == 2 {
		r.got = append(r.got, p)
	}
	return &http.Response{
		StatusCode: status,
		Status:     http.StatusText(status),
		Header:     http.Header{"Location": {"http://elsewhere/"}},
		Body:       io.NopCloser(strings.NewReader("x")),
		Request:    req,
	}, nil
}

func (r *receiver) seen() []string {
	var out []string
	for _, p := range r.got {
		out = append(out, fmt.Sprint(p.Experiment, p.Version, " ", p.Type))
	}
	return out
}

func dispatcher(t *testing.T, l control.Reader, file string, r http.RoundTripper, change func(*Config)) *Dispatcher {
	t.Helper()
	cfg := Default()
	cfg.Endpoints = []Endpoint{{Name: "hook", URL: "http://receiver/x", Secret: secret}}
	if change != nil {
		change(&cfg)
	}
	d, err := New(cfg, l, file, r, zerolog.Nop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// start runs the dispatcher until the returned function is called.
func start(t *testing.T, d *Dispatcher) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// A receiver that fails gets each delivery again with growing pauses, in order, under the same id, until it takes it.
func TestAFailingReceiverGetsEverythingInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, r := newLog(), &receiver{t: t, statuses: []int{500, 0, 429, 503, 200, 502, 204}}
		d := dispatcher(t, l, "", r, nil)
		stop := start(t, d)
		l.create(t, "e")
		l.do(t, control.ExperimentStepped, "e", control.Step{Index: 1, Share: 0.5, AtMS: 5})
		l.do(t, control.ExperimentDecided, "e", control.Decision{Outcome: control.Promote, Rule: "lift_above_zero", LiftLow: 0.01})
		time.Sleep(time.Hour)
		synctest.Wait()
		stop()
		if diff := cmp.Diff([]string{"e1 experiment.created", "e2 experiment.step", "e3 experiment.decided"}, r.seen()); diff != "" {
			t.Error(diff)
		}
		for i := range 4 { // before the first is taken
			if gap, least := r.at[i+1].Sub(r.at[i]), time.Second<<i/2; gap < least || gap > 2*least+1 {
				t.Errorf("pause %d is %v, want %v to %v", i, gap, least, 2*least)
			}
		}
		last := r.got[2]
		if last.Actor != "ada" || last.Note != "why" || last.Treatment != "b" ||
			!strings.Contains(string(last.Data), `"rule":"lift_above_zero"`) {
			t.Errorf("the decision came as %+v", last)
		}
	})
}

// What a receiver never takes is given up, does not hold up what follows, and can be replayed under the same id.
func TestGivenUpAndReplayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, r := newLog(), &receiver{t: t, statuses: []int{500, 500, 500, 200}}
		file := filepath.Join(t.TempDir(), "hooks.json")
		d := dispatcher(t, l, file, r, func(c *Config) { c.Attempts = 3 })
		stop := start(t, d)
		l.create(t, "e")
		l.do(t, control.ExperimentPaused, "e", control.Pause{})
		time.Sleep(time.Hour)
		synctest.Wait()
		s := d.Status()
		if len(s) != 1 || s[0].Pending != 0 || len(s[0].GaveUp) != 1 || s[0].GaveUp[0].Version != 1 || s[0].GaveUp[0].Attempts != 3 {
			t.Fatalf("status %+v", s)
		}
		if n, err := d.Replay("hook", "e", 1); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		synctest.Wait()
		stop()
		if diff := cmp.Diff([]string{"e2 experiment.paused", "e1 experiment.created", "e2 experiment.paused"}, r.seen()); diff != "" {
			t.Error(diff)
		}
		if r.got[0].Delivery != r.got[2].Delivery || r.got[1].Delivery != s[0].GaveUp[0].Delivery {
			t.Error("a replay has other ids")
		}
		if s := d.Status(); len(s[0].GaveUp) != 0 {
			t.Errorf("still given up: %+v", s)
		}
		if _, err := d.Replay("none", "e", 1); !errors.Is(err, ErrUnknownEndpoint) {
			t.Error(err)
		}
		if _, err := d.Replay("", "none", 1); err == nil {
			t.Error("replayed an experiment that does not exist")
		}
	})
}

// A client error other than "later" is final at once, and a redirect is not followed.
func TestFinalAnswers(t *testing.T) {
	for _, status := range []int{400, 404, 410, 302} {
		synctest.Test(t, func(t *testing.T) {
			l, r := newLog(), &receiver{t: t, statuses: []int{status, 200}}
			d := dispatcher(t, l, "", r, nil)
			stop := start(t, d)
			l.create(t, "e")
			synctest.Wait()
			stop()
			if len(r.at) != 1 || len(d.Status()[0].GaveUp) != 1 {
				t.Errorf("%d: %d attempts, %+v", status, len(r.at), d.Status())
			}
		})
	}
}

// Whatever moment the process ends at, a restart goes on where the receiver is: nothing is lost, and what comes again
// has the id that it had.
func TestRestartLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, file := newLog(), filepath.Join(t.TempDir(), "hooks.json")
		l.create(t, "old") // before the endpoint was configured
		r := &receiver{t: t, statuses: []int{500}}
		stop := start(t, dispatcher(t, l, file, r, nil))
		synctest.Wait()
		stop()
		l.create(t, "e") // while nothing runs
		for i := range 6 {
			if i == 3 {
				r.statuses = []int{200}
			}
			stop := start(t, dispatcher(t, l, file, r, nil))
			l.do(t, control.ExperimentForced, "e", control.Forced{Unit: fmt.Sprint("u", i), Variant: "control"})
			synctest.Wait()
			time.Sleep(time.Duration(i) * 700 * time.Millisecond)
			stop()
		}
		want := []string{"e1 experiment.created"}
		for i := range 6 {
			want = append(want, fmt.Sprint("e", i+2, " experiment.forced"))
		}
		if diff := cmp.Diff(want, r.seen()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestOnlyTheEventsAskedForAndABoundedQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, r := newLog(), &receiver{t: t, statuses: []int{500}}
		d := dispatcher(t, l, "", r, func(c *Config) {
			c.Endpoints[0].Events = []control.Type{control.ExperimentForced, control.ExperimentDecided}
			c.Queue = 5
		})
		l.create(t, "e")
		for i := range 20 {
			l.do(t, control.ExperimentForced, "e", control.Forced{Unit: fmt.Sprint(i), Variant: "treatment"})
		}
		if n := len(d.queue(d.cfg.Endpoints[0])); n != 5 {
			t.Fatalf("%d deliveries are held, want 5", n)
		}
		r.statuses = []int{200}
		stop := start(t, d)
		synctest.Wait()
		stop()
		if len(r.got) != 20 || r.got[0].Version != 2 || r.got[19].Version != 21 {
			t.Errorf("got %v", r.seen())
		}
	})
}

func TestSignatures(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	body := []byte(`{"a":1}`)
	// openssl dgst -sha256 -hmac 0123456789abcdef over `1800000000.{"a":1}`
	good := "t=1800000000,v1=d3e17924cac4a72ca2ee9e5700df170fdb5733eaf69ecd909fb0c18a962b03a5"
	if got := Sign([]byte(secret), body, now); got != good {
		t.Errorf("signed %s, want %s", got, good)
	}
	for _, c := range []struct {
		what, header, secret string
		body                 string
		now                  time.Time
		ok                   bool
	}{
		{"as sent", good, secret, `{"a":1}`, now, true},
		{"another body", good, secret, `{"a":2}`, now, false},
		{"another secret", good, "another-secret-16", `{"a":1}`, now, false},
		{"too old", good, secret, `{"a":1}`, now.Add(6 * time.Minute), false},
		{"from the future", good, secret, `{"a":1}`, now.Add(-6 * time.Minute), false},
		{"another time", strings.Replace(good, "18", "17", 1), secret, `{"a":1}`, now, false},
		{"two sums, as while a secret is changed", good + ",v1=00", secret, `{"a":1}`, now, true},
		{"nothing", "", secret, `{"a":1}`, now, false},
	} {
		if err := Verify([]byte(c.secret), c.header, []byte(c.body), c.now, 5*time.Minute); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

// Over a real connection, with a receiver that is down at first.
func TestOverHTTP(t *testing.T) {
	got := make(chan string, 10)
	calls := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if err := Verify([]byte(secret), r.Header.Get(HeaderSignature), body, time.Now(), time.Minute); err != nil {
			t.Error(err)
		}
		if calls++; calls == 1 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		got <- r.Header.Get(HeaderEvent)
	}))
	defer srv.Close()
	l := newLog()
	d := dispatcher(t, l, "", nil, func(c *Config) { c.Endpoints[0].URL, c.Backoff = srv.URL, time.Millisecond })
	stop := start(t, d)
	l.create(t, "e")
	if typ := <-got; typ != string(control.ExperimentCreated) {
		t.Error(typ)
	}
	stop()
}

func TestConfigNamesEveryProblem(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Fatal(err)
	}
	err := Config{Endpoints: []Endpoint{{URL: "ftp://x", Secret: config.Secret("short"), Events: []control.Type{"job.failed"}}}}.Validate()
	for _, path := range []string{"endpoints[0].name", "endpoints[0].url", "endpoints[0].secret", "endpoints[0].events", "timeout", "attempts",
		"backoff", "queue"} {
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s is missing in: %v", path, err)
		}
	}
	if err != nil && strings.Contains(err.Error(), "short") {
		t.Error("the secret is shown")
	}
}
