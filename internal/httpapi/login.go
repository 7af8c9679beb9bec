package httpapi

import (
	"crypto/rand"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"ctrloop/internal/access"
)

// LoginPath is where a browser gets its session.
const LoginPath = "/login"

// SessionCookie names a session: kept from scripts, and from requests that other sites' pages start.
const SessionCookie = "ctrloop_session"

// Bounds of sessions and of the login form.
const (
	sessionTime = 12 * time.Hour
	maxSessions = 1000
	maxLogin    = 4 << 10 // bytes
)

// loginPage has no script, and nothing from elsewhere.
const loginPage = `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>ctrloop: log in</title>
<main><h1>ctrloop</h1><p>This instance wants a token: <code>ctrloop token create --scopes read NAME</code> makes one.</p>
<form method="post" action="/login"><label>Token <input name="token" type="password" autocomplete="current-password" required autofocus
size="64"></label> <button>Log in</button></form></main></html>
`

// sessions are logged-in browsers, in memory: a restart ends them. A session stands for a token, which is checked again at
// each request, so that a revoked token ends its sessions. The browser never gets the token itself: cookies go to every
// port of a host.
type sessions struct {
	mu   sync.Mutex
	open map[string]session // by the cookie's value
}

type session struct {
	token string
	ends  time.Time
}

// start opens a session of a token and returns the cookie's value.
func (s *sessions) start(token string, now time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = make(map[string]session)
	}
	first, ends := "", time.Time{}
	for id, o := range s.open {
		if !now.Before(o.ends) {
			delete(s.open, id)
		} else if first == "" || o.ends.Before(ends) {
			first, ends = id, o.ends
		}
	}
	if len(s.open) >= maxSessions {
		delete(s.open, first)
	}
	id := rand.Text()
	s.open[id] = session{token, now.Add(sessionTime)}
	return id
}

// token is that of a request's session, "" for none.
func (s *sessions) token(r *http.Request) string {
	cookie, err := r.Cookie(SessionCookie)
	if err != nil {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.open[cookie.Value]
	if !ok || !time.Now().Before(o.ends) {
		return ""
	}
	return o.token
}

func (s *sessions) end(r *http.Request) {
	if cookie, err := r.Cookie(SessionCookie); err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, cookie.Value)
	}
}

// Routes are the login page, for a listener with pages for people.
func (t *Tokens) Routes() []Route {
	return []Route{
		{http.MethodGet, LoginPath, access.Public, showLogin},
		{http.MethodPost, LoginPath, access.Public, t.login},
		{http.MethodPost, "/logout", access.Public, t.logout},
	}
}

// toLogin says whether a browser that opens a page asks, rather than a program.
func toLogin(r *http.Request) bool {
	return r.Method == http.MethodGet && r.Header.Get("Authorization") == "" && strings.Contains(r.Header.Get("Accept"), "text/html")
}

func showLogin(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write([]byte(loginPage))
}

func (t *Tokens) login(w http.ResponseWriter, r *http.Request) {
	raw, err := Body(r, maxLogin)
	if err != nil {
		Fail(w, err)
		return
	}
	form, err := url.ParseQuery(string(raw))
	if err != nil {
		Fail(w, Refuse(http.StatusBadRequest, "use the form of "+LoginPath, "the form cannot be read: %v", err))
		return
	}
	token := form.Get("token")
	r.Header.Set("Authorization", "Bearer "+token)
	if err := Require(r, access.Read); err != nil {
		Fail(w, err)
		return
	}
	setCookie(w, t.sessions.start(token, time.Now()), int(sessionTime/time.Second))
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (t *Tokens) logout(w http.ResponseWriter, r *http.Request) {
	t.sessions.end(r)
	setCookie(w, "", -1)
	http.Redirect(w, r, LoginPath, http.StatusSeeOther)
}

func setCookie(w http.ResponseWriter, value string, maxAge int) {
	http.SetCookie(w, &http.Cookie{
		Name: SessionCookie, Value: value, Path: "/", MaxAge: maxAge, HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
}
