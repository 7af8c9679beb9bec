package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/internal/access"
)

// gate is an entry over routes as a listener on an address has it.
func gate(t *testing.T, auth Auth, loopback bool, routes []Route, who ...Authenticator) *entry {
	t.Helper()
	limits := DefaultLimits()
	d, err := newDoor(auth, loopback, time.Now, who)
	if err != nil {
		t.Fatal(err)
	}
	e := &entry{door: d, limits: limits, bodies: NewBudget(limits.MaxBodiesBytes), refused: func(string) {}, bug: func(string, any, []byte) {}}
	if e.mux, err = newMux(e.wrap, routes); err != nil {
		t.Fatal(err)
	}
	return e
}

func whoami(w http.ResponseWriter, r *http.Request) { Reply(w, 200, Who(r.Context()).Name) }

var someRoutes = []Route{
	{"GET", "/read", access.Read, whoami},
	{"POST", "/write", access.ExperimentsWrite, whoami},
	{"GET", "/open", access.Public, whoami},
}

// request is one to a gate, with headers given in pairs.
func request(method, target string, headers ...string) *http.Request {
	r := httptest.NewRequest(method, target, nil)
	r.RemoteAddr = "127.0.0.1:999"
	for i := 0; i < len(headers); i += 2 {
		if r.Header.Set(headers[i], headers[i+1]); headers[i] == "Host" {
			r.Host = headers[i+1]
		}
	}
	return r
}

func ask(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// V14: on loopback, another Host or Origin may neither write nor read, whatever the content type.
func TestForeignPagesAreRefused(t *testing.T) {
	e := gate(t, DefaultAuth(), true, someRoutes)
	open := DefaultAuth()
	open.AllowedHosts, open.AllowedOrigins = []string{"ops.example"}, []string{"https://ops.example"}
	allowed := gate(t, open, true, someRoutes)
	for _, c := range []struct {
		on     *entry
		method string
		path   string
		host   string
		more   []string
		code   int
	}{
		{e, "POST", "/write", "127.0.0.1:8080", nil, 200},
		{e, "POST", "/write", "localhost:8080", []string{"Origin", "http://localhost:8080"}, 200},
		{e, "GET", "/read", "[::1]:8080", []string{"Origin", "http://[::1]:8080"}, 200},
		{e, "GET", "/read", "localhost", []string{"Sec-Fetch-Site", "same-origin"}, 200},
		{e, "POST", "/write", "evil.example", nil, 403},                                         // rebound name
		{e, "GET", "/read", "evil.example:8080", nil, 403},                                      // rebound name
		{e, "GET", "/open", "evil.example", nil, 403},                                           // rebound name
		{e, "POST", "/write", "127.0.0.1.evil.example", nil, 403},                               // looks like one
		{e, "POST", "/write", "localhost:8080", []string{"Origin", "http://evil.example"}, 403}, // form or fetch
		{e, "POST", "/write", "localhost:8080", []string{"Origin", "http://evil.example", "Content-Type", "text/plain"}, 403},
		{e, "POST", "/write", "localhost:8080", []string{"Origin", "null"}, 403},                  // sandboxed frame
		{e, "POST", "/write", "localhost:8080", []string{"Origin", "http://localhost:3000"}, 403}, // another server here
		{e, "POST", "/write", "localhost:8080", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{e, "GET", "/read", "localhost:8080", []string{"Origin", "http://evil.example"}, 403},
		{e, "GET", "/open", "localhost:8080", []string{"Origin", "http://shop.example"}, 200}, // pictures on other sites
		{allowed, "POST", "/write", "ops.example", []string{"Origin", "https://ops.example"}, 200},
		{allowed, "GET", "/read", "ops.example:443", []string{"Origin", "https://ops.example"}, 200},
		{allowed, "POST", "/write", "ops.example", []string{"Origin", "http://evil.example"}, 403},
		{allowed, "POST", "/write", "evil.example", nil, 403},
		{allowed, "POST", "/write", "127.0.0.1", nil, 200},
	} {
		if w := ask(c.on, request(c.method, c.path, append([]string{"Host", c.host}, c.more...)...)); w.Code != c.code {
			t.Errorf("%s %s at %s with %v: %d %s, want %d", c.method, c.path, c.host, c.more, w.Code, w.Body, c.code)
		}
	}
}

// tokens makes a file with a token per scope list.
func tokens(t *testing.T, lists map[string][]access.Scope) (file string, secrets map[string]string) {
	t.Helper()
	file, secrets = filepath.Join(t.TempDir(), access.TokensFile), map[string]string{}
	for name, scopes := range lists {
		secret, _, err := access.Create(file, name, scopes, time.Time{}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		secrets[name] = secret
	}
	return file, secrets
}

func store(t *testing.T, file string) *access.Store {
	t.Helper()
	s, err := access.Open(file, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Every scope opens its own routes and no other's; admin opens all; and who comes without a token stays outside of all
// that is not public, where tokens are required.
func TestScopes(t *testing.T) {
	var routes []Route
	lists := map[string][]access.Scope{}
	for _, s := range access.Scopes() {
		routes = append(routes, Route{"GET", "/" + string(s), s, whoami})
		lists["has-"+strings.ReplaceAll(string(s), ":", "-")] = []access.Scope{s}
	}
	routes = append(routes, Route{"GET", "/public", access.Public, whoami})
	file, secrets := tokens(t, lists)
	required := DefaultAuth()
	required.Required = true
	e := gate(t, required, true, routes, NewTokens(store(t, file)))
	for _, r := range routes {
		for name, secret := range secrets {
			want := http.StatusForbidden
			if s := lists[name][0]; s == r.Scope || s == access.Admin || r.Scope == access.Public {
				want = http.StatusOK
			}
			w := ask(e, request("GET", "http://localhost"+r.Path, "Authorization", "Bearer "+secret))
			if w.Code != want || want == 200 && r.Scope != access.Public && w.Body.String() != fmt.Sprintf("%q\n", name) {
				t.Errorf("%s of %s: %d %s, want %d", r.Path, name, w.Code, w.Body, want)
			}
		}
		want := http.StatusUnauthorized
		if r.Scope == access.Public {
			want = http.StatusOK
		}
		if w := ask(e, request("GET", "http://localhost"+r.Path)); w.Code != want {
			t.Errorf("%s without a token: %d %s", r.Path, w.Code, w.Body)
		}
	}
}

// A route may be public in part: its handler asks for the rest.
func TestRequire(t *testing.T) {
	file, secrets := tokens(t, map[string][]access.Scope{"reads": {access.Read}, "writes": {access.EventsWrite}})
	required := DefaultAuth()
	required.Required = true
	partly := func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".png") {
			Reply(w, 200, May(r, access.Read))
			return
		}
		if err := Require(r, access.Read); err != nil {
			Fail(w, err)
			return
		}
		whoami(w, r)
	}
	e := gate(t, required, true, []Route{{"GET", "/things/{id}", access.Public, partly}}, NewTokens(store(t, file)))
	for _, c := range []struct {
		path, token string
		code        int
		body        string
	}{
		{"/things/a.png", "", 200, "false"},
		{"/things/a.png", "reads", 200, "true"},
		{"/things/a.png", "writes", 200, "false"},
		{"/things/a", "", 401, "unauthenticated"},
		{"/things/a", "writes", 403, "forbidden"},
		{"/things/a", "reads", 200, "reads"},
	} {
		r := request("GET", "http://localhost"+c.path)
		if c.token != "" {
			r.Header.Set("Authorization", "Bearer "+secrets[c.token])
		}
		if w := ask(e, r); w.Code != c.code || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s of %q: %d %s", c.path, c.token, w.Code, w.Body)
		}
	}
}

// Who acts is who was authenticated. A name in a header counts beside the instance's own token alone.
func TestActors(t *testing.T) {
	file, secrets := tokens(t, map[string][]access.Scope{"deploy": {access.ExperimentsWrite}})
	s := store(t, file)
	own := s.Own()
	e := gate(t, DefaultAuth(), true, someRoutes, NewTokens(s))
	for _, c := range []struct {
		headers []string
		code    int
		who     string
	}{
		{nil, 200, "local"},
		{[]string{"X-Ctrloop-Actor", "ceo"}, 200, "local"},
		{[]string{HeaderUser, "ceo"}, 200, "local"},
		{[]string{"Authorization", "Bearer " + secrets["deploy"], HeaderUser, "ceo", "X-Ctrloop-Actor", "ceo"}, 200, "deploy"},
		{[]string{"Authorization", "bearer " + own}, 200, "local"},
		{[]string{"Authorization", "Bearer " + own, HeaderUser, "ada"}, 200, "local/ada"},
		{[]string{"Authorization", "Bearer " + own, HeaderUser, "a\nb"}, 200, "local"},
		{[]string{"Authorization", "Bearer " + own + "x"}, 401, "not one of this instance's"}, // never taken for none
		{[]string{"Authorization", "Bearer "}, 401, "not one of this instance's"},
	} {
		if w := ask(e, request("POST", "http://localhost/write", c.headers...)); w.Code != c.code || !strings.Contains(w.Body.String(), c.who) {
			t.Errorf("%v: %d %s, want %d %s", c.headers, w.Code, w.Body, c.code, c.who)
		}
	}
	// Beyond loopback nobody is local without a token.
	if w := ask(gate(t, DefaultAuth(), false, someRoutes), request("POST", "http://host.example/write")); w.Code != 401 ||
		w.Header().Get("WWW-Authenticate") != "Bearer" {
		t.Errorf("beyond loopback without a token: %d %s", w.Code, w.Body)
	}
}

// A file of tokens that cannot be read lets nobody in but the instance's own user.
func TestUnreadableTokens(t *testing.T) {
	file, secrets := tokens(t, map[string][]access.Scope{"deploy": {access.Admin}})
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := access.Open(file, time.Now)
	if err == nil {
		t.Fatal("a broken file was opened without an error")
	}
	e := gate(t, DefaultAuth(), true, someRoutes, NewTokens(s))
	if w := ask(e, request("GET", "http://localhost/read", "Authorization", "Bearer "+secrets["deploy"])); w.Code != 503 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := ask(e, request("GET", "http://localhost/read", "Authorization", "Bearer "+s.Own())); w.Code != 200 {
		t.Errorf("the own token: %d %s", w.Code, w.Body)
	}
}

// Wrong tokens are counted by address, and calls by token; others go on.
func TestRates(t *testing.T) {
	file, secrets := tokens(t, map[string][]access.Scope{"a": {access.Read}, "b": {access.Read}})
	auth := DefaultAuth()
	auth.RequestsPerSecond, auth.FailuresPerMinute = 2, 3
	now := time.Unix(1_800_000_000, 0)
	e := gate(t, auth, true, someRoutes, NewTokens(store(t, file)))
	e.door.now = func() time.Time { return now }
	from := func(address, token string) *httptest.ResponseRecorder {
		r := request("GET", "http://localhost/read", "Authorization", "Bearer "+token)
		r.RemoteAddr = address + ":1"
		return ask(e, r)
	}
	for i, want := range []int{401, 401, 401, 429, 429} {
		if w := from("10.0.0.1", "ctrloop_0000000000_x"); w.Code != want {
			t.Errorf("wrong token %d: %d, want %d", i, w.Code, want)
		}
	}
	if w := from("10.0.0.1", secrets["a"]); w.Code != 429 || w.Header().Get("Retry-After") != "20" {
		t.Errorf("a right token of the same address: %d %v", w.Code, w.Header())
	}
	if w := from("10.0.0.2", secrets["a"]); w.Code != 200 {
		t.Errorf("another address: %d", w.Code)
	}
	now = now.Add(20 * time.Second)
	if w := from("10.0.0.1", secrets["a"]); w.Code != 200 {
		t.Errorf("after a while: %d", w.Code)
	}
	now = now.Add(time.Minute)
	for i, want := range []int{200, 200, 200, 200, 429} {
		if w := from("10.0.0.3", secrets["a"]); w.Code != want {
			t.Errorf("call %d of a token: %d, want %d", i, w.Code, want)
		}
	}
	if w := from("10.0.0.3", secrets["b"]); w.Code != 200 {
		t.Errorf("another token: %d", w.Code)
	}
}

func TestLimitersAreBounded(t *testing.T) {
	l := limiters[netip.Addr]{limit: 1, burst: 3}
	now := time.Unix(0, 0)
	for i := range 3 * maxLimiters {
		l.spend(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), now)
	}
	if len(l.m) > maxLimiters {
		t.Errorf("%d buckets", len(l.m))
	}
}

// A browser is led to the login page and gets a session that scripts cannot read; programs get the error.
func TestLogin(t *testing.T) {
	file, secrets := tokens(t, map[string][]access.Scope{"ada": {access.Read}, "edge": {access.EventsWrite}})
	auth := DefaultAuth()
	auth.Required = true
	now := time.Now()
	keeper, err := access.Open(file, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	who := NewTokens(keeper)
	e := gate(t, auth, true, append(who.Routes(), someRoutes...), who)
	if w := ask(e, request("GET", "http://localhost/read", "Accept", "text/html,*/*")); w.Code != 303 ||
		w.Header().Get("Location") != LoginPath {
		t.Errorf("a browser: %d %v", w.Code, w.Header())
	}
	if w := ask(e, request("GET", "http://localhost/read")); w.Code != 401 {
		t.Errorf("a program: %d", w.Code)
	}
	if w := ask(e, request("GET", "http://localhost/login")); w.Code != 200 ||
		!strings.Contains(w.Header().Get("Content-Security-Policy"), "default-src 'none'") {
		t.Errorf("the page: %d %v", w.Code, w.Header())
	}
	post := func(token string, headers ...string) *httptest.ResponseRecorder {
		r := request("POST", "http://localhost/login", headers...)
		body := url.Values{"token": {token}}.Encode()
		with := httptest.NewRequest("POST", "http://localhost/login", strings.NewReader(body))
		with.Header, with.RemoteAddr = r.Header, r.RemoteAddr
		return ask(e, with)
	}
	if w := post("ctrloop_0000000000_x"); w.Code != 401 || w.Header().Get("Set-Cookie") != "" {
		t.Errorf("a wrong token: %d %v", w.Code, w.Header())
	}
	if w := post(secrets["edge"]); w.Code != 403 {
		t.Errorf("a token that may not read: %d", w.Code)
	}
	if w := post(secrets["ada"], "Origin", "http://evil.example"); w.Code != 403 {
		t.Errorf("a login by another site: %d", w.Code)
	}
	w := post(secrets["ada"])
	cookies := w.Result().Cookies()
	if w.Code != 303 || len(cookies) != 1 || !cookies[0].HttpOnly || cookies[0].SameSite != http.SameSiteStrictMode ||
		strings.Contains(secrets["ada"], cookies[0].Value) || strings.Contains(w.Header().Get("Set-Cookie"), secrets["ada"]) {
		t.Fatalf("login: %d %v", w.Code, w.Header())
	}
	in := func(path string) int {
		return ask(e, request("GET", "http://localhost"+path, "Cookie", cookies[0].Name+"="+cookies[0].Value)).Code
	}
	if code := in("/read"); code != 200 {
		t.Errorf("with the session: %d", code)
	}
	if w := ask(e, request("POST", "http://localhost/write", "Cookie", cookies[0].Name+"="+cookies[0].Value)); w.Code != 403 {
		t.Errorf("beyond the token's scopes: %d", w.Code)
	}
	if _, err := access.Revoke(file, "ada", now); err != nil {
		t.Fatal(err)
	}
	now = now.Add(2 * time.Second)
	if code := in("/read"); code != 401 {
		t.Errorf("with the session of a revoked token: %d", code)
	}
}

// Beyond loopback a listener does not start while nobody has to say who they are, and the error says how to go on.
func TestListenersBeyondLoopbackWantAuthentication(t *testing.T) {
	required := DefaultAuth()
	required.Required = true
	for address, ok := range map[string]bool{
		"127.0.0.1:0": true, "localhost:9": true, "[::1]:0": true, "[::ffff:127.0.0.1]:0": true,
		"0.0.0.0:0": false, ":0": false, "10.0.0.1:80": false, "example.org:80": false, "127.0.0.1": false,
	} {
		err := DefaultAuth().CheckAddress(address)
		if (err == nil) != ok {
			t.Errorf("%q: %v, want allowed=%v", address, err, ok)
		}
		if strings.Contains(address, ":") && required.CheckAddress(address) != nil {
			t.Errorf("%q with authentication: %v", address, required.CheckAddress(address))
		}
	}
	kit, err := New(DefaultLimits(), DefaultAuth(), zerolog.Nop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kit.Listen("api", "0.0.0.0:0", someRoutes...); err == nil || !strings.Contains(err.Error(), "ctrloop token create") ||
		!strings.Contains(err.Error(), "auth.required") {
		t.Errorf("listen: %v", err)
	}
}

func TestRoutesAreWhole(t *testing.T) {
	for _, r := range []Route{
		{"GET", "/a", "", whoami},
		{"GET", "/a", "everything", whoami},
		{"", "/a", access.Read, whoami},
		{"GET", "/a", access.Read, nil},
	} {
		if _, err := newMux(func(Route) http.Handler { return http.NotFoundHandler() }, []Route{r}); err == nil {
			t.Errorf("%v was taken", r)
		}
	}
}

// Every error has one shape, with an id that the log has too.
func TestErrors(t *testing.T) {
	routes := append([]Route{
		{"PUT", "/write", access.Read, whoami},
		{"GET", "/broken", access.Read, func(w http.ResponseWriter, _ *http.Request) { Fail(w, errors.New("disk full")) }},
		{"GET", "/panic", access.Read, func(http.ResponseWriter, *http.Request) { panic("oh") }},
		{"GET", "/full", access.Read, func(w http.ResponseWriter, _ *http.Request) { Fail(w, Refuse(503, "wait", "full")) }},
		{"GET", "/things/{id}", access.Read, whoami},
	}, someRoutes...)
	e := gate(t, DefaultAuth(), true, routes)
	for _, c := range []struct {
		method, path string
		status       int
		code, says   string
		header       string
	}{
		{"GET", "/nowhere", 404, "not_found", "there is no GET /nowhere", ""},
		{"GET", "/write", 405, "method_not_allowed", "/write takes no GET", "POST, PUT"},
		{"DELETE", "/things/7", 405, "method_not_allowed", "/things/7 takes no DELETE", "GET, HEAD"},
		{"GET", "/broken", 500, "internal", "disk full", ""},
		{"GET", "/panic", 500, "internal", "a bug stopped the request", ""},
		{"GET", "/full", 503, "unavailable", "full", ""},
	} {
		w := ask(e, request(c.method, "http://localhost"+c.path, HeaderRequestID, "my-1"))
		var got struct{ Error Error }
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Errorf("%s: %v in %s", c.path, err, w.Body)
			continue
		}
		if w.Code != c.status || got.Error.Code != c.code || got.Error.Message != c.says || got.Error.RequestID != "my-1" ||
			w.Header().Get(HeaderRequestID) != "my-1" || w.Header().Get("Allow") != c.header || got.Error.Hint == "" ||
			w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %d %v %+v", c.method, c.path, w.Code, w.Header(), got.Error)
		}
	}
	if id := ask(e, request("GET", "http://localhost/read", HeaderRequestID, "a\nb")).Header().Get(HeaderRequestID); len(id) != 16 {
		t.Errorf("an id that cannot stand in a log became %q", id)
	}
	if got := ask(e, request("GET", "http://localhost/full")).Header().Get("Retry-After"); got != "1" {
		t.Errorf("Retry-After %q", got)
	}
}

func TestStrictJSON(t *testing.T) {
	for body, want := range map[string]string{
		`{"name":"a","count":3}`:        "",
		`{"name":"a","count":3} `:       "",
		`{"name":"a"} {}`:               "something follows",
		`{"name":"a"}]`:                 "something follows",
		`{"nmae":"a"}`:                  `unknown field "nmae"`,
		`{"name":3}`:                    "name cannot be a JSON number",
		`{"count":"x"}`:                 "count cannot be a JSON string",
		``:                              "it is empty",
		`{"name":"a"`:                   "unexpected EOF",
		`{"count":1,"extra":{"a":[1]}}`: `unknown field "extra"`,
	} {
		var v struct {
			Name  string `json:"name"`
			Count int    `json:"count"`
		}
		err := ReadJSON(httptest.NewRequest("POST", "/", strings.NewReader(body)), 1000, &v)
		refused, ok := errors.AsType[*Error](err)
		if want == "" && err != nil || want != "" && (!ok || refused.Status != 400 || !strings.Contains(refused.Message, want)) {
			t.Errorf("%s: %v, want %q", body, err, want)
		}
	}
	err := ReadJSON(httptest.NewRequest("POST", "/", strings.NewReader(strings.Repeat(" ", 1001))), 1000, new(int))
	if refused, ok := errors.AsType[*Error](err); !ok || refused.Status != 413 {
		t.Errorf("too much: %v", err)
	}
}

// A client sends its token to its own address alone.
func TestClientKeepsItsToken(t *testing.T) {
	var seen []string
	note := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = append(seen, r.Header.Get("Authorization")) })
	other := httptest.NewServer(note)
	defer other.Close()
	here := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		note(w, r)
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	}))
	defer here.Close()
	c := NewClient("secret", "ada", time.Minute, here.URL)
	for _, u := range []string{here.URL, other.URL} {
		resp, err := c.Get(u)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	if len(seen) != 2 || seen[0] != "Bearer secret" || seen[1] != "" {
		t.Errorf("tokens were sent: %q", seen)
	}
}
