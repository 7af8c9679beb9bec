package ray

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ctrloop/trainer-bridge/runner"
)

// fake answers as Ray 2.60.0 did: testdata has its answers, the status in the last line, of tasks called rec-N. It is no Ray: it
// runs nothing, and its tasks are moved by the test.
type fake struct {
	t      *testing.T
	mu     sync.Mutex
	tasks  map[string]string // name -> the recorded answer to a look
	submit string            // the recorded answer to the next submission; empty: as Ray does
	lose   bool              // the answer to the next submission
	bodies []map[string]any
	auth   string
}

func serve(t *testing.T) (*fake, *Cluster) {
	t.Helper()
	f := &fake{t: t, tasks: map[string]string{}}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return f, New(Config{Address: server.URL + "/"})
}

var recordedName = regexp.MustCompile(`\b(rec-[a-z0-9]+|nope)\b`)

func (f *fake) answer(w http.ResponseWriter, file, name string) {
	raw, err := os.ReadFile(filepath.Join("testdata", file+".txt"))
	if err != nil {
		f.t.Error(err)
		return
	}
	end := bytes.LastIndexByte(raw, '\n')
	code, err := strconv.Atoi(string(raw[end+1:]))
	if err != nil {
		f.t.Error(err)
	}
	w.WriteHeader(code)
	_, _ = w.Write(recordedName.ReplaceAll(raw[:end], []byte(name)))
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.auth = r.Header.Get("Authorization")
	name, what, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/api/jobs/"), "/")
	look, known := f.tasks[name]
	switch {
	case r.Method == http.MethodPost && name == "":
		f.submission(w, r)
	case !known:
		f.answer(w, "look-unknown", name)
	case r.Method == http.MethodGet && what == "":
		f.answer(w, look, name)
	case r.Method == http.MethodGet && what == "logs":
		f.answer(w, "logs", name)
	case r.Method == http.MethodPost && what == "stop":
		switch look {
		case "look-running":
			f.tasks[name] = "look-stopped"
			f.answer(w, "stop", name)
		case "look-pending":
			f.answer(w, "stop", name) // and it stays pending
		default:
			f.answer(w, "stop-ended", name)
		}
	default:
		f.t.Errorf("%s %s", r.Method, r.URL.Path)
	}
}

func (f *fake) submission(w http.ResponseWriter, r *http.Request) {
	var body map[string]any
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		f.t.Error(err)
	}
	name, _ := body["submission_id"].(string)
	if f.submit != "" {
		f.answer(w, f.submit, name)
		f.submit = ""
		return
	}
	if _, known := f.tasks[name]; known {
		f.answer(w, "submit-again", name)
		return
	}
	f.bodies = append(f.bodies, body)
	f.tasks[name] = "look-pending"
	if f.lose {
		f.lose = false
		panic(http.ErrAbortHandler)
	}
	f.answer(w, "submit", name)
}

var task = runner.Task{
	Name: "ctrloop-reward-x-0123456789-1", Script: "/jobs/it's/run-1.sh", Dir: "/jobs/it's", Labels: map[string]string{"job": "reward-x"},
	Resources: runner.Resources{CPUs: 2, MemoryBytes: 4 << 30, GPUs: 1}, Grace: 30 * time.Second,
}

func TestSubmit(t *testing.T) {
	f, c := serve(t)
	for range 2 {
		if err := c.Submit(t.Context(), task); err != nil {
			t.Fatal(err)
		}
	}
	want := []map[string]any{{
		"entrypoint": `sh '/jobs/it'\''s/run-1.sh'`, "submission_id": task.Name, "metadata": map[string]any{"job": "reward-x"},
		"runtime_env":         map[string]any{"env_vars": map[string]any{"RAY_JOB_STOP_WAIT_TIME_S": "30"}},
		"entrypoint_num_cpus": 2.0, "entrypoint_num_gpus": 1.0, "entrypoint_memory": 4294967296.0,
	}}
	if d := cmp.Diff(want, f.bodies); d != "" {
		t.Error(d)
	}
}

// An answer that is lost, and another bridge that is quicker between the look and the submission.
func TestSubmitOnce(t *testing.T) {
	f, c := serve(t)
	f.lose = true
	if err := c.Submit(t.Context(), task); err == nil || errors.Is(err, runner.ErrRefused) {
		t.Errorf("a lost answer: %v", err)
	}
	if err := c.Submit(t.Context(), task); err != nil || len(f.bodies) != 1 {
		t.Errorf("%v; %d submissions", err, len(f.bodies))
	}
	f.submit = "submit-again"
	other := task
	other.Name = "ctrloop-other-1"
	if err := c.Submit(t.Context(), other); err != nil {
		t.Errorf("the other was quicker: %v", err)
	}
}

// A cluster that is starting is asked again, a body that it does not understand is not sent again.
func TestSubmitFails(t *testing.T) {
	f, c := serve(t)
	f.submit = "no-agent"
	err := c.Submit(t.Context(), task)
	if err == nil || errors.Is(err, runner.ErrRefused) || !strings.Contains(err.Error(), "No available agent") {
		t.Errorf("%v", err)
	}
	f.submit = "bad-type"
	if err := c.Submit(t.Context(), task); !errors.Is(err, runner.ErrRefused) || !strings.Contains(err.Error(), "must be a number") {
		t.Errorf("%v", err)
	}
}

func TestLook(t *testing.T) {
	f, c := serve(t)
	for file, want := range map[string]runner.Status{
		"look-pending":       {State: runner.Waiting},
		"look-running":       {State: runner.Running},
		"look-succeeded":     {State: runner.Succeeded},
		"look-failed":        {State: runner.Failed, Exit: 3},
		"look-killed":        {State: runner.Failed, Exit: 137},
		"look-stopped":       {State: runner.Failed, Cause: runner.Stopped},
		"look-start-timeout": {State: runner.Failed, Cause: runner.Unstarted},
	} {
		f.tasks["x"] = file
		got, err := c.Look(t.Context(), "x")
		if got.Reason == "" {
			t.Errorf("%s: no reason", file)
		}
		got.Reason = ""
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", file, got, err, want)
		}
	}
	if _, err := c.Look(t.Context(), "y"); !errors.Is(err, runner.ErrUnknown) {
		t.Errorf("unknown: %v", err)
	}
	if _, err := (details{Status: "DREAMING"}).status(); err == nil {
		t.Error("a state of a later release is taken for one of these")
	}
	for id, want := range map[string]runner.Cause{
		"JOB_SUPERVISOR_ACTOR_DIED": runner.Lost, "JOB_SUPERVISOR_ACTOR_START_FAILURE": runner.Unstarted,
	} {
		if s, err := (details{Status: "FAILED", ErrorType: id}).status(); err != nil || s.Cause != want {
			t.Errorf("%s: %+v, %v", id, s, err)
		}
	}
}

// A page of a proxy in front of Ray is no word of Ray's: 404 means unknown only where the answer names the task.
func TestLookBehindAProxy(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "<html>no such backend", http.StatusNotFound)
	}))
	defer server.Close()
	if _, err := New(Config{Address: server.URL}).Look(t.Context(), "x"); err == nil || errors.Is(err, runner.ErrUnknown) {
		t.Errorf("%v", err)
	}
	server.Close()
	if _, err := New(Config{Address: server.URL}).Look(t.Context(), "x"); err == nil || errors.Is(err, runner.ErrUnknown) {
		t.Errorf("down: %v", err)
	}
}

func TestStopAndLog(t *testing.T) {
	f, c := serve(t)
	for _, look := range []string{"look-running", "look-pending", "look-succeeded"} {
		f.tasks["x"] = look
		if err := c.Stop(t.Context(), "x"); err != nil {
			t.Errorf("%s: %v", look, err)
		}
	}
	if err := c.Stop(t.Context(), "y"); err != nil {
		t.Errorf("unknown: %v", err)
	}
	var log strings.Builder
	if err := c.Log(t.Context(), "x", &log); err != nil || !strings.Contains(log.String(), "\nhi\n") {
		t.Errorf("%q, %v", log.String(), err)
	}
	if err := c.Log(t.Context(), "y", &log); !errors.Is(err, runner.ErrUnknown) {
		t.Errorf("%v", err)
	}
}

func TestToken(t *testing.T) {
	f, c := serve(t)
	c.cfg.TokenFile = filepath.Join(t.TempDir(), "token")
	if err := c.Submit(t.Context(), task); err == nil || !strings.Contains(err.Error(), c.cfg.TokenFile) {
		t.Errorf("no file: %v", err)
	}
	for _, token := range []string{"one", "two"} {
		if err := os.WriteFile(c.cfg.TokenFile, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _ = c.Look(t.Context(), "x"); f.auth != "Bearer "+token {
			t.Errorf("sent %q", f.auth)
		}
	}
}

func TestProblems(t *testing.T) {
	for address, ok := range map[string]bool{"http://head:8265": true, "https://ray/": true, "": false, "head:8265": false, "ftp://x": false} {
		if got := (Config{Address: address}).Problems(); (len(got) == 0) != ok {
			t.Errorf("%q: %v", address, got)
		}
	}
}
