package httpapi

import (
	"net/http"
	"strings"
	"time"
)

// NewClient makes a client that sends a token, and the name of the user of this machine, to one address alone: a redirect
// is not followed, and another host gets neither. address is host:port or a URL; empty token: nothing is sent.
func NewClient(address, token, user string, timeout time.Duration) *http.Client {
	return &http.Client{
		Timeout: timeout, Transport: bearer{HostPort(address), token, user, http.DefaultTransport},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// HostPort is the host:port of an address or a URL.
func HostPort(address string) string {
	if _, rest, ok := strings.Cut(address, "://"); ok {
		address = rest
	}
	host, _, _ := strings.Cut(address, "/")
	return host
}

type bearer struct {
	host, token, user string
	next              http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.token == "" || r.URL.Host != b.host {
		return b.next.RoundTrip(r)
	}
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	if b.user != "" {
		r.Header.Set(HeaderUser, b.user)
	}
	return b.next.RoundTrip(r)
}
