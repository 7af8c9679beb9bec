package httpapi

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// NewClient makes a client that sends a token, and the name of the user of this machine, to the given addresses alone
// (host:port or URLs): a redirect is not followed, and another host gets neither. Empty token: nothing is sent.
func NewClient(token, user string, timeout time.Duration, addresses ...string) *http.Client {
	hosts := make([]string, len(addresses))
	for i, a := range addresses {
		hosts[i] = HostPort(a)
	}
	return &http.Client{
		Timeout: timeout, Transport: bearer{hosts, token, user, http.DefaultTransport},
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
	hosts       []string
	token, user string
	next        http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.token == "" || !slices.Contains(b.hosts, r.URL.Host) {
		return b.next.RoundTrip(r)
	}
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	if b.user != "" {
		r.Header.Set(HeaderUser, b.user)
	}
	return b.next.RoundTrip(r)
}
