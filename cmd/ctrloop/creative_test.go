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

// The commands on creatives and models: what they send, and what they say of the answer. The calls have their tests in serving.
func TestCreativeAndModelCommands(t *testing.T) {
	var asked string
	answer := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			raw, _ := io.ReadAll(r.Body)
			asked = r.Method + " " + r.URL.String() + " " + string(raw)
			_, _ = io.WriteString(w, body)
		}
	}
	creative := `{"id":"c-1","product":"p-1","model_version":"prompt-a","description":"a lake","blocked":"by ada: logo"}`
	srv := httptest.NewServer(httpapi.Open(
		httpapi.Route{Method: "GET", Path: "/v1/creatives", Scope: access.Read,
			Handle: answer(`{"creatives":[` + creative + `,{"id":"c-2","product":"p-1"}]}`)},
		httpapi.Route{Method: "POST", Path: "/v1/creatives/{id}/block", Scope: access.ModelsPromote, Handle: answer(creative)},
		httpapi.Route{Method: "POST", Path: "/v1/creatives/{id}/unblock", Scope: access.ModelsPromote,
			Handle: func(w http.ResponseWriter, _ *http.Request) {
				httpapi.Fail(w, httpapi.Refuse(http.StatusNotFound, "GET /v1/creatives lists them", "no creative"))
			}},
		httpapi.Route{Method: "GET", Path: "/v1/models/versions", Scope: access.Read,
			Handle: answer(`{"versions":[{"version":"prompt-a","logical":"prompt","state":"champion","replicas":2},` +
				`{"version":"prompt-b","logical":"prompt","state":"retained","previous":true}]}`)},
		httpapi.Route{Method: "POST", Path: "/v1/models/{logical}/rollback", Scope: access.ModelsPromote,
			Handle: answer(`{"champion":"prompt-b","previous":"prompt-a"}`)},
	))
	defer srv.Close()
	for _, c := range []struct {
		args, asked string
		code        int
		want        string
	}{
		{"creative ls --product p-1", "GET /v1/creatives?limit=1000&product=p-1 ", 0, "c-2"},
		{"creative ls --blocked", "GET /v1/creatives?limit=10000 ", 0, "by ada: logo"},
		{"creative block c-1 --note logo --expect 0", `POST /v1/creatives/c-1/block {"expect":0,"note":"logo"}`, 0,
			"c-1 of p-1 is blocked by ada: logo"},
		{"creative block c-1", "", 2, "--note"},
		{"creative unblock c-9 --note n", "", 1, "`ctrloop creative ls` lists them"},
		{"model ls", "GET /v1/models/versions ", 0, "the way back"},
		{"model rollback --note ugly", `POST /v1/models/prompt/rollback {"note":"ugly"}`, 0,
			"prompt: prompt-b answers again, in the place of prompt-a"},
	} {
		asked = ""
		code, stdout, stderr := cli(t, append(strings.Fields(c.args), "--api", srv.URL)...)
		if code != c.code || asked != c.asked || !strings.Contains(stdout+stderr, c.want) {
			t.Errorf("%s: exit %d, asked %q:\n%s%s", c.args, code, asked, stdout, stderr)
		}
		if c.args == "creative ls --blocked" && strings.Contains(stdout, "c-2") {
			t.Errorf("lists what may serve: %s", stdout)
		}
	}
}
