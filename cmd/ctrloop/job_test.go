package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"ctrloop/internal/access"
	"ctrloop/internal/httpapi"
)

// The commands on jobs: what they send, and what they say of the answer. The calls have their tests in serving.
func TestJobCommands(t *testing.T) {
	var asked string
	answer := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			raw, _ := io.ReadAll(r.Body)
			asked = r.Method + " " + r.URL.String() + " " + string(raw)
			_, _ = io.WriteString(w, body)
		}
	}
	failed := `{"id":"rounds-a","kind":"rounds","state":"failed","reason":"enough pairs","datasets":["d1"],"spec":{"seed":1},` +
		`"update":{"attempt":2,"class":"out_of_memory","error":"killed\nsecond line"},"queued":"2026-03-01T10:00:00Z"}`
	queued := strings.NewReplacer("failed", "queued", `,"class":"out_of_memory","error":"killed\nsecond line"`, "").Replace(failed)
	srv := httptest.NewServer(httpapi.Open(
		httpapi.Route{Method: "GET", Path: "/v1/jobs", Scope: access.Read,
			Handle: answer(`{"jobs":[` + failed + `,{"id":"reward-b","kind":"reward","state":"running","spec":{}}]}`)},
		httpapi.Route{Method: "GET", Path: "/v1/jobs/{id}", Scope: access.Read, Handle: answer(failed)},
		httpapi.Route{Method: "POST", Path: "/v1/jobs/{id}/retry", Scope: access.ModelsPromote, Handle: answer(queued)},
		httpapi.Route{Method: "POST", Path: "/v1/jobs/{id}/cancel", Scope: access.ModelsPromote,
			Handle: func(w http.ResponseWriter, _ *http.Request) {
				httpapi.Fail(w, httpapi.Refuse(http.StatusNotFound, "GET /v1/jobs lists them", "no job"))
			}},
	))
	defer srv.Close()
	for _, c := range []struct {
		args, asked string
		code        int
		want, not   string
	}{
		{"job ls", "GET /v1/jobs ", 0, "out_of_memory: killed", "second line"},
		{"job ls --state running", "GET /v1/jobs ", 0, "reward-b", "rounds-a"},
		{"job ls --limit 1", "GET /v1/jobs ", 0, "rounds-a", "reward-b"},
		{"job ls --state lost", "", 2, "queued", ""},
		{"job show rounds-a", "GET /v1/jobs/rounds-a ", 0, "second line", ""},
		{"job show", "", 2, "<id>", ""},
		{"job retry rounds-a --note again", `POST /v1/jobs/rounds-a/retry {"note":"again"}`, 0, "rounds-a is queued after 2 attempts", ""},
		{"job cancel rounds-a", "", 2, "--note", ""},
		{"job cancel rounds-a --note n", "", 1, "`ctrloop job ls` lists them", ""},
	} {
		asked = ""
		code, stdout, stderr := cli(t, append(strings.Fields(c.args), "--api", srv.URL)...)
		if code != c.code || asked != c.asked || !strings.Contains(stdout+stderr, c.want) || c.not != "" && strings.Contains(stdout, c.not) {
			t.Errorf("%s: exit %d, asked %q:\n%s%s", c.args, code, asked, stdout, stderr)
		}
	}
}
