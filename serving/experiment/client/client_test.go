package client

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"ctrloop/internal/access"
	"ctrloop/internal/httpapi"
)

func TestCall(t *testing.T) {
	var token, user string
	srv := httptest.NewServer(httpapi.Open(
		httpapi.Route{Method: "POST", Path: "/v1/experiments/{id}/pause", Scope: access.ExperimentsWrite,
			Handle: func(w http.ResponseWriter, r *http.Request) {
				token, user = r.Header.Get("Authorization"), r.Header.Get(httpapi.HeaderUser)
				httpapi.Reply(w, 200, r.PathValue("id"))
			}},
		httpapi.Route{Method: "GET", Path: "/v1/experiments", Scope: access.Read, Handle: func(w http.ResponseWriter, _ *http.Request) {
			httpapi.Fail(w, httpapi.Refuse(http.StatusConflict, "read it again", "it has moved on"))
		}},
		httpapi.Route{Method: "GET", Path: "/v1/experiments/proxy", Scope: access.Read, Handle: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadGateway)
			_, _ = w.Write([]byte("<html>"))
		}},
	))
	defer srv.Close()
	c := New(srv.URL+"/", "t0ken", "ada")
	if got, err := c.Call(t.Context(), "POST", "/e/pause", map[string]string{"note": "n"}); err != nil || string(got) != "\"e\"\n" ||
		token != "Bearer t0ken" || user != "ada" {
		t.Errorf("%s, %v, token %q of %q", got, err, token, user)
	}
	_, err := c.Call(t.Context(), "GET", "", nil)
	if refused, ok := errors.AsType[*Error](err); !ok || refused.Status != 409 || refused.Code != "conflict" ||
		refused.Hint != "read it again" ||
		refused.RequestID == "" || err.Error() != "it has moved on" {
		t.Errorf("%#v", err)
	}
	_, err = New(httpapi.HostPort(srv.URL), "", "").Call(t.Context(), "GET", "/proxy", nil)
	if refused, ok := errors.AsType[*Error](err); !ok || refused.Status != 502 ||
		err.Error() != "GET /v1/experiments/proxy: 502 Bad Gateway: <html>" {
		t.Errorf("%v", err)
	}
}
