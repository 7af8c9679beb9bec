package httpapi

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"ctrloop/internal/access"
)

// Auth says who may come in.
type Auth struct {
	// Required: every call wants a token, from this machine too. Listeners beyond loopback demand it. Without it, callers
	// on loopback are users of this machine and may do everything; a token, if one is sent, must be right.
	Required bool `yaml:"required"`
	// TokensFile of `ctrloop token`; empty: tokens.json in the folder of the instance. A change counts a second later.
	TokensFile string `yaml:"tokens_file"`
	// AllowedHosts are names, besides those of loopback, under which the listeners may be called (the Host header,
	// without its port). Empty: loopback listeners answer to loopback's names only, others to every name.
	AllowedHosts []string `yaml:"allowed_hosts"`
	// AllowedOrigins are web origins, such as https://ops.example, whose pages may call. Empty: only our own pages.
	AllowedOrigins []string `yaml:"allowed_origins"`
	// RequestsPerSecond bounds the calls of one token, with a burst of twice as many.
	RequestsPerSecond float64 `yaml:"requests_per_second"`
	// FailuresPerMinute bounds wrong tokens from one address; beyond it, the address must wait with any token.
	FailuresPerMinute int `yaml:"failures_per_minute"`
}

// DefaultAuth asks nobody on loopback.
func DefaultAuth() Auth { return Auth{RequestsPerSecond: 10_000, FailuresPerMinute: 30} }

// Validate returns every problem of the section.
func (a Auth) Validate() error {
	var errs []error
	if !(a.RequestsPerSecond > 0) {
		errs = append(errs, fmt.Errorf("requests_per_second: %v: want more than 0", a.RequestsPerSecond))
	}
	if a.FailuresPerMinute < 1 {
		errs = append(errs, fmt.Errorf("failures_per_minute: %d: want at least 1", a.FailuresPerMinute))
	}
	for i, h := range a.AllowedHosts {
		if h == "" || strings.ContainsAny(h, "/ ") || hostOf(h) != h {
			errs = append(errs, fmt.Errorf("allowed_hosts[%d]: %q: want a name or an address without a port", i, h))
		}
	}
	protection := http.NewCrossOriginProtection()
	for i, o := range a.AllowedOrigins {
		if err := protection.AddTrustedOrigin(o); err != nil {
			errs = append(errs, fmt.Errorf("allowed_origins[%d]: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

// CheckAddress says whether a listener may have an address, host:port. Beyond loopback it wants authentication.
func (a Auth) CheckAddress(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is not host:port", address)
	}
	if IsLoopback(host) || a.Required {
		return nil
	}
	return fmt.Errorf("%q is reachable from other machines and nobody would have to say who they are: "+
		"use 127.0.0.1, or set auth.required: true and make tokens with `ctrloop token create`", address)
}

// IsLoopback says whether a host, as in an address or a Host header, can only mean this machine.
func IsLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// hostOf is a Host header without its port.
func hostOf(hostPort string) string {
	if host, _, err := net.SplitHostPort(hostPort); err == nil {
		return strings.ToLower(host)
	}
	return strings.ToLower(strings.Trim(hostPort, "[]"))
}

// Authenticator says who sends a request. ErrNoCredentials means that the request carries none that it knows, so that the
// next one is asked; another error, that those it carries are refused. Tokens are one; OIDC is meant to be another.
type Authenticator interface {
	Authenticate(r *http.Request) (access.Identity, error)
}

// ErrNoCredentials is returned by an Authenticator for a request without credentials of its kind.
var ErrNoCredentials = errors.New("no credentials")

// HeaderUser carries the name of the user of this machine beside the instance's own token, and is believed only there.
const HeaderUser = "X-Ctrloop-User"

// Tokens authenticates by Authorization: Bearer, or by the session that a browser got at the login page.
type Tokens struct {
	store    *access.Store
	sessions sessions
}

// NewTokens authenticates with the tokens of a store.
func NewTokens(store *access.Store) *Tokens { return &Tokens{store: store} }

// Authenticate implements Authenticator.
func (t *Tokens) Authenticate(r *http.Request) (access.Identity, error) {
	var secret string
	if header := r.Header.Get("Authorization"); header != "" {
		scheme, rest, _ := strings.Cut(header, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return access.Identity{}, ErrNoCredentials
		}
		secret = strings.TrimSpace(rest)
	} else if secret = t.sessions.token(r); secret == "" {
		return access.Identity{}, ErrNoCredentials
	}
	who, err := t.store.Identify(secret)
	if user := r.Header.Get(HeaderUser); err == nil && who.Local && userName(user) {
		named := access.LocalUser(user)
		named.Token = who.Token
		return named, nil
	}
	return who, err
}

// userName says whether a name of a user of this machine can go on the control log as it is.
func userName(name string) bool {
	if name == "" || len(name) > 64 {
		return false
	}
	for _, c := range name {
		plain := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._@-", c)
		if !plain {
			return false
		}
	}
	return true
}

// door decides who comes in at one listener.
type door struct {
	cfg      Auth
	auth     []Authenticator
	loopback bool // the listener is reachable from this machine alone
	origins  *http.CrossOriginProtection
	trusted  []string
	now      func() time.Time
	tokens   limiters[string]     // calls by token
	failures limiters[netip.Addr] // wrong tokens by address
}

func newDoor(cfg Auth, loopback bool, now func() time.Time, auth []Authenticator) (*door, error) {
	d := &door{cfg: cfg, auth: auth, loopback: loopback, origins: http.NewCrossOriginProtection(), now: now}
	for _, o := range cfg.AllowedOrigins {
		if err := d.origins.AddTrustedOrigin(o); err != nil {
			return nil, fmt.Errorf("auth.allowed_origins: %w", err)
		}
		d.trusted = append(d.trusted, strings.ToLower(o))
	}
	d.tokens.limit, d.tokens.burst = rate.Limit(cfg.RequestsPerSecond), max(1, int(2*cfg.RequestsPerSecond))
	d.failures.limit, d.failures.burst = rate.Limit(float64(cfg.FailuresPerMinute)/60), cfg.FailuresPerMinute
	return d, nil
}

// checkHost refuses a request that was meant for another name: a page that resolves its own name to 127.0.0.1 (DNS
// rebinding) would otherwise reach us through the browser of a user of this machine.
func (d *door) checkHost(r *http.Request) *Error {
	host := hostOf(r.Host)
	if slices.Contains(d.cfg.AllowedHosts, host) || IsLoopback(host) || !d.loopback && len(d.cfg.AllowedHosts) == 0 {
		return nil
	}
	return Refuse(http.StatusForbidden, "call it as 127.0.0.1 or localhost, or add the name to auth.allowed_hosts",
		"host %q is not one of ours", host)
}

// checkOrigin refuses what a page of another site has its visitor's browser send, writes and reads alike. What is public
// may be read from anywhere: other sites show our pictures.
func (d *door) checkOrigin(r *http.Request, public bool) *Error {
	err := d.origins.Check(r) // unsafe methods
	if origin := r.Header.Get("Origin"); err == nil && origin != "" && !public && !d.ours(origin, r.Host) {
		err = errors.New("a foreign Origin")
	}
	if err == nil {
		return nil
	}
	return Refuse(http.StatusForbidden, "call it from its own pages, or add the origin to auth.allowed_origins",
		"origin %q may not call %s", r.Header.Get("Origin"), r.Host)
}

func (d *door) ours(origin, host string) bool {
	if slices.Contains(d.trusted, strings.ToLower(origin)) {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && strings.EqualFold(u.Host, host)
}

// identify says who sends a request; the error is what to answer.
func (d *door) identify(r *http.Request, address netip.Addr) (access.Identity, *Error) {
	now := d.now()
	for _, a := range d.auth {
		who, err := a.Authenticate(r)
		switch {
		case errors.Is(err, ErrNoCredentials):
			continue
		case !d.failures.has(address, now):
			e := Refuse(http.StatusTooManyRequests, "wait, and send a token that is right", "too many wrong tokens came from %s", address)
			e.RetryAfter = time.Minute / time.Duration(d.cfg.FailuresPerMinute)
			return access.Identity{}, e
		case errors.Is(err, access.ErrUnknown), errors.Is(err, access.ErrExpired), errors.Is(err, access.ErrRevoked):
			d.failures.spend(address, now)
			return who, Refuse(http.StatusUnauthorized, "`ctrloop token create` makes another one", "%v", err)
		case err != nil: // nothing is known: nobody comes in
			return who, Refuse(http.StatusServiceUnavailable, "the log and /readyz of the instance say more", "tokens cannot be checked")
		case !d.tokens.spend(who.Token, now):
			return who, Refuse(http.StatusTooManyRequests, "come back after Retry-After",
				"token %s sends more than %v requests a second (auth.requests_per_second)", who.Name, d.cfg.RequestsPerSecond)
		}
		return who, nil
	}
	if !d.cfg.Required && d.loopback {
		return access.LocalUser(""), nil
	}
	return access.Identity{Name: "anonymous"}, nil
}

// admit says whether somebody may use a scope; the error is what to answer.
func admit(who access.Identity, s access.Scope) *Error {
	switch {
	case who.May(s):
		return nil
	case who.Token == "" && !who.Local:
		return Refuse(http.StatusUnauthorized, "send Authorization: Bearer TOKEN; `ctrloop token create` makes one",
			"this call wants a token with the scope %s", s)
	}
	return Refuse(http.StatusForbidden, "use a token that has it: `ctrloop token create --scopes "+string(s)+" NAME`",
		"%s has the scopes %v; this call wants %s", who.Name, who.Scopes, s)
}

// limiters are token buckets by key. Keys of addresses come from clients, so their number is bounded; full buckets
// say nothing and are dropped.
type limiters[K comparable] struct {
	limit rate.Limit
	burst int
	mu    sync.Mutex
	m     map[K]*rate.Limiter
}

// maxLimiters bounds the buckets of one door.
const maxLimiters = 8192

func (l *limiters[K]) of(key K, now time.Time) *rate.Limiter {
	if b := l.m[key]; b != nil {
		return b
	}
	if l.m == nil {
		l.m = make(map[K]*rate.Limiter)
	}
	if len(l.m) >= maxLimiters {
		for k, b := range l.m {
			// A quarter goes in any case, so that not every new key looks through all.
			if b.TokensAt(now) >= float64(l.burst) || len(l.m) > maxLimiters*3/4 {
				delete(l.m, k)
			}
		}
	}
	b := rate.NewLimiter(l.limit, l.burst)
	l.m[key] = b
	return b
}

// spend takes one, false where none is left.
func (l *limiters[K]) spend(key K, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.of(key, now).AllowN(now, 1)
}

// has says whether one is left.
func (l *limiters[K]) has(key K, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.m[key]
	return b == nil || b.TokensAt(now) >= 1
}
