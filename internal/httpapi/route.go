package httpapi

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"ctrloop/internal/access"
)

// Route is one call. All fields must be given: a route without a scope is a bug that stops the process at its start.
type Route struct {
	Method string
	Path   string // a pattern of net/http, without the method
	Scope  access.Scope
	Handle http.HandlerFunc
}

// String is how lists show a route.
func (r Route) String() string { return fmt.Sprintf("%-6s %-50s %s", r.Method, r.Path, r.Scope) }

// Handler makes a handler of a plain one.
func Handler(h http.Handler) http.HandlerFunc { return h.ServeHTTP }

// mux answers routes, and what is none of them in the one shape of errors: 404, or 405 with the methods that there are.
type mux struct {
	routes []Route
	net    *http.ServeMux
}

// newMux checks the routes. wrap is put around each.
func newMux(wrap func(Route) http.Handler, routes []Route) (*mux, error) {
	m := &mux{routes: slices.Clone(routes), net: http.NewServeMux()}
	for _, r := range routes {
		if r.Scope != access.Public && !slices.Contains(access.Scopes(), r.Scope) {
			return nil, fmt.Errorf("route %s %s has scope %q, which is none", r.Method, r.Path, r.Scope)
		}
		if r.Method == "" || r.Handle == nil {
			return nil, fmt.Errorf("route %q of method %q is not whole", r.Path, r.Method)
		}
		m.net.Handle(r.Method+" "+r.Path, wrap(r))
	}
	m.net.HandleFunc("/", m.none)
	return m, nil
}

// ServeHTTP implements http.Handler.
func (m *mux) ServeHTTP(w http.ResponseWriter, r *http.Request) { m.net.ServeHTTP(w, r) }

// none answers what no route matches.
func (m *mux) none(w http.ResponseWriter, r *http.Request) {
	allowed := m.allowed(r)
	if len(allowed) == 0 {
		Fail(w, Refuse(http.StatusNotFound, "docs/operations.md lists the calls", "there is no %s %s", r.Method, r.URL.Path))
		return
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	Fail(w, Refuse(http.StatusMethodNotAllowed, "use "+strings.Join(allowed, " or "), "%s takes no %s", r.URL.Path, r.Method))
}

// allowed lists the methods of the path. It asks for each, which only wrong requests pay for.
func (m *mux) allowed(r *http.Request) []string {
	var found []string
	other := *r
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		other.Method = method
		if _, pattern := m.net.Handler(&other); pattern != "/" && pattern != "" {
			found = append(found, method)
		}
	}
	return found
}

// Sorted lists routes by path and method, as docs and tests show them.
func Sorted(routes []Route) []Route {
	out := slices.Clone(routes)
	slices.SortStableFunc(out, func(a, b Route) int { return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Method, b.Method)) })
	return out
}
