package slurm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ctrloop/trainer-bridge/runner"
)

// fake answers as slurmrestd 22.05.8 did: testdata has its answers, the status in the last line. It is no Slurm: its jobs are those
// of the recorded list (rec-N), and those that the test puts beside them.
type fake struct {
	t       *testing.T
	submit  string // the recorded answer to submissions
	list    string // the recorded answer to /jobs
	cancel  string
	more    []job
	bodies  []map[string]any
	deleted []string
	header  http.Header
}

func serve(t *testing.T) (*fake, *Cluster) {
	t.Helper()
	f := &fake{t: t, submit: "submit", list: "jobs", cancel: "cancel"}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("jwt\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return f, New(Config{
		Address: server.URL, User: "trainer", TokenFile: token, Partition: "gpu", Account: "ads", TimeLimit: 90 * time.Second,
	})
}

// recorded returns an answer of testdata.
func recorded(t *testing.T, name string) (body []byte, status int) {
	raw, err := os.ReadFile(filepath.Join("testdata", name+".txt"))
	if err != nil {
		t.Error(err)
		return nil, http.StatusTeapot
	}
	end := bytes.LastIndexByte(raw, '\n')
	status, err = strconv.Atoi(string(raw[end+1:]))
	if err != nil {
		t.Error(err)
	}
	return raw[:end], status
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.header = r.Header
	name := f.list
	switch {
	case r.Method == http.MethodPost && r.URL.Path == "/slurm/v0.0.38/job/submit":
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			f.t.Error(err)
		}
		f.bodies = append(f.bodies, body)
		name = f.submit
	case r.Method == http.MethodDelete && strings.HasPrefix(r.URL.Path, "/slurm/v0.0.38/job/"):
		f.deleted = append(f.deleted, r.URL.Path[len("/slurm/v0.0.38/job/"):])
		name = f.cancel
	case r.Method == http.MethodGet && r.URL.Path == "/slurm/v0.0.38/jobs":
	default:
		f.t.Errorf("%s %s", r.Method, r.URL.Path)
	}
	body, status := recorded(f.t, name)
	if name == "jobs" && len(f.more) > 0 {
		var r reply
		if err := json.Unmarshal(body, &r); err != nil {
			f.t.Error(err)
		}
		r.Jobs = append(r.Jobs, f.more...)
		body, _ = json.Marshal(r)
	}
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

var task = runner.Task{
	Name: "ctrloop-reward-x-0123456789-1", Script: "/jobs/it's/run-1.sh", Dir: "/jobs/it's",
	Labels:    map[string]string{"job": "reward-x", "kind": "reward"},
	Resources: runner.Resources{CPUs: 1.5, MemoryBytes: 4<<30 + 1, GPUs: 2}, Grace: 30 * time.Second,
}

func TestSubmit(t *testing.T) {
	f, c := serve(t)
	if err := c.Submit(t.Context(), task); err != nil {
		t.Fatal(err)
	}
	want := []map[string]any{{
		"script": "#!/bin/sh\nexec sh '/jobs/it'\\''s/run-1.sh'\n",
		"job": map[string]any{
			"name": task.Name, "comment": "ctrloop job reward-x (reward)", "current_working_directory": "/jobs/it's",
			"standard_output": "/jobs/it's/slurm-%j.log", "environment": map[string]any{"PATH": DefaultPath}, "requeue": false,
			"partition": "gpu", "account": "ads", "time_limit": 2.0, "cpus_per_task": 2.0, "memory_per_node": 4097.0, "gres": "gpu:2",
		},
	}}
	if d := cmp.Diff(want, f.bodies); d != "" {
		t.Error(d)
	}
	if f.header.Get("X-SLURM-USER-NAME") != "trainer" || f.header.Get("X-SLURM-USER-TOKEN") != "jwt" {
		t.Errorf("header %v", f.header)
	}
	f.more = []job{{ID: 99, Name: task.Name, State: "PENDING"}}
	if err := c.Submit(t.Context(), task); err != nil || len(f.bodies) != 1 {
		t.Errorf("again: %v, %d submissions", err, len(f.bodies))
	}
}

// Errors beside a job_id are of a job that was taken; without one they are final or not, by their number.
func TestSubmitFails(t *testing.T) {
	for answer, want := range map[string]struct {
		refused bool
		words   string
	}{
		"cpus":  {false, ""},
		"part":  {true, "Invalid partition name specified"},
		"mem":   {true, "[2014]"},
		"noenv": {true, "environment must be set"},
		// slurmrestd without its controller answers like this, too
		"bad-token": {false, "Failed while looking for jobs"},
		"no-token":  {false, "Authentication failure"},
	} {
		f, c := serve(t)
		f.submit = answer
		err := c.Submit(t.Context(), task)
		if errors.Is(err, runner.ErrRefused) != want.refused || (err == nil) != (want.words == "") ||
			err != nil && !strings.Contains(err.Error(), want.words) {
			t.Errorf("%s: %v", answer, err)
		}
		f.list = "bad-token"
		if err := c.Submit(t.Context(), task); err == nil || len(f.bodies) != 1 {
			t.Errorf("%s: submitted without a look at what is there: %v", answer, err)
		}
	}
}

func TestLook(t *testing.T) {
	f, c := serve(t)
	for name, want := range map[string]runner.Status{
		"rec-1":  {State: runner.Succeeded, Reason: "COMPLETED"},
		"rec-2":  {State: runner.Failed, Exit: 3, Reason: "FAILED: NonZeroExitCode"},
		"rec-3":  {State: runner.Failed, Cause: runner.Stopped, Reason: "CANCELLED"},
		"rec-4":  {State: runner.Failed, Exit: 137, Reason: "FAILED: JobLaunchFailure"},
		"rec-7":  {State: runner.Waiting, Reason: "PENDING: PartitionConfig"},
		"rec-8":  {State: runner.Failed, Cause: runner.Unstarted, Reason: "FAILED: BadConstraints"},
		"rec-10": {State: runner.Waiting, Reason: "PENDING: JobHeldUser"},
	} {
		if got, err := c.Look(t.Context(), name); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, want)
		}
	}
	if _, err := c.Look(t.Context(), "rec-99"); !errors.Is(err, runner.ErrUnknown) {
		t.Errorf("unknown: %v", err)
	}
	for state, want := range map[string]runner.Status{
		"RUNNING": {State: runner.Running}, "COMPLETING": {State: runner.Running}, "OUT_OF_MEMORY": {State: runner.Failed, Cause: runner.Memory},
		"TIMEOUT": {State: runner.Failed, Cause: runner.Deadline}, "NODE_FAIL": {State: runner.Failed, Cause: runner.Lost},
		"PREEMPTED": {State: runner.Failed, Cause: runner.Preempted}, "BOOT_FAIL": {State: runner.Failed, Cause: runner.Unstarted},
	} {
		want.Reason = state
		f.more = []job{{ID: 50, Name: "x", State: state}}
		if got, err := c.Look(t.Context(), "x"); err != nil || got != want {
			t.Errorf("%s: %+v, %v", state, got, err)
		}
	}
	f.more[0].State = "DREAMING"
	if _, err := c.Look(t.Context(), "x"); err == nil {
		t.Error("a state of a later release is taken for one of these")
	}
	for _, list := range []string{"bad-token", "no-token"} { // a server that cannot be asked knows nothing of jobs
		f.list = list
		if _, err := c.Look(t.Context(), "rec-1"); err == nil || errors.Is(err, runner.ErrUnknown) {
			t.Errorf("%s: %v", list, err)
		}
	}
}

// Two submissions that crossed: the copy that has the run counts, not the one that found it taken.
func TestTwoOfAName(t *testing.T) {
	const taken = runner.ExitTaken << 8
	for _, test := range []struct {
		two  []job
		want int
	}{
		{[]job{{ID: 5, State: "PENDING"}, {ID: 6, State: "RUNNING"}}, 6},
		{[]job{{ID: 5, State: "FAILED", ExitCode: taken}, {ID: 6, State: "RUNNING"}}, 6},
		{[]job{{ID: 5, State: "COMPLETED"}, {ID: 6, State: "FAILED", ExitCode: taken}}, 5},
		{[]job{{ID: 5, State: "FAILED", ExitCode: taken}, {ID: 6, State: "PENDING"}}, 6},
		{[]job{{ID: 6, State: "PENDING"}, {ID: 5, State: "PENDING"}}, 5},
	} {
		f, c := serve(t)
		for _, j := range test.two {
			j.Name = "x"
			f.more = append(f.more, j)
		}
		if got, err := c.find(t.Context(), "x"); err != nil || got.ID != test.want {
			t.Errorf("%+v: %d, %v; want %d", test.two, got.ID, err, test.want)
		}
	}
}

func TestStop(t *testing.T) {
	f, c := serve(t)
	for _, name := range []string{"rec-7", "rec-1", "nope"} { // waits, has ended, unknown
		if err := c.Stop(t.Context(), name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.cancel = "unknown-cancel" // it has been forgotten between the look and the stop
	if err := c.Stop(t.Context(), "rec-10"); err != nil {
		t.Error(err)
	}
	f.cancel = "bad-token"
	if err := c.Stop(t.Context(), "rec-10"); err == nil {
		t.Error("a stop that failed is none")
	}
	if got := fmt.Sprint(f.deleted); got != "[5 8 8]" {
		t.Errorf("deleted %s", got)
	}
}

func TestProblems(t *testing.T) {
	bad := Config{Address: "host:6820", TimeLimit: time.Second}.Problems()
	if got := errors.Join(bad...).Error(); len(bad) != 4 || !strings.Contains(got, "token_file: ") || !strings.Contains(got, "user: ") {
		t.Errorf("%v", got)
	}
	if good := (Config{Address: "http://h:6820", User: "u", TokenFile: "/t"}).Problems(); len(good) != 0 {
		t.Error(good)
	}
}
