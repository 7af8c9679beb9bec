package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"runtime/debug"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/internal/access"
	"ctrloop/internal/telemetry"
)

// entry is where every request of a listener comes in.
type entry struct {
	mux      *mux
	door     *door
	limits   Limits
	bodies   *Budget
	stopping chan struct{}
	refused  func(reason string)
	bug      func(path string, what any, stack []byte)
}

// call is what is known of a request.
type call struct {
	of      *entry
	address netip.Addr
	hold    *Hold
	who     access.Identity
	asked   bool // who has been found out
}

type callKey struct{}

func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// Who is the identity of the caller, for the control log. It is found out where the route's scope is not public.
func Who(ctx context.Context) access.Identity {
	if c := callOf(ctx); c != nil && c.asked {
		return c.who
	}
	return access.Identity{Name: "anonymous"}
}

// Client names a caller for turns and shares between callers: its token's id, or where it has none its address.
func Client(r *http.Request) string {
	if who := Who(r.Context()); who.Token != "" {
		return who.Token
	}
	if c := callOf(r.Context()); c != nil {
		return c.address.String()
	}
	return addressOf(r.RemoteAddr).String()
}

// Require refuses a caller without a scope, in a handler whose route is public. The error is of type *Error.
func Require(r *http.Request, s access.Scope) error {
	c := callOf(r.Context())
	if c == nil {
		return Refuse(http.StatusInternalServerError, "this is a bug", "the request came through no listener")
	}
	if err := c.require(r, s); err != nil {
		return err
	}
	return nil
}

// May says whether the caller has a scope, in a handler whose route is public and which shows more to some.
func May(r *http.Request, s access.Scope) bool {
	c := callOf(r.Context())
	if c == nil {
		return false
	}
	who, err := c.of.door.identify(r, c.address)
	return err == nil && who.May(s)
}

// Stopping is closed when the listener begins to stop: streams end then. Nil where there is no listener.
func Stopping(ctx context.Context) <-chan struct{} {
	if c := callOf(ctx); c != nil {
		return c.of.stopping
	}
	return nil
}

// require returns what to answer, nil for nothing. (Not error: a nil *Error in an error is not nil.)
func (c *call) require(r *http.Request, s access.Scope) *Error {
	if s == access.Public {
		return nil
	}
	if !c.asked {
		who, err := c.of.door.identify(r, c.address)
		if err != nil {
			c.of.refused(err.Code)
			return err
		}
		c.who, c.asked = who, true
	}
	if err := admit(c.who, s); err != nil {
		c.of.refused(err.Code)
		return err
	}
	return nil
}

// ServeHTTP implements http.Handler.
func (e *entry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{of: e, address: addressOf(r.RemoteAddr), hold: e.bodies.Hold()}
	defer c.hold.Release()
	out := &writer{ResponseWriter: w, control: http.NewResponseController(w), timeout: e.limits.WriteTimeout}
	out.extend()
	defer out.extend() // the server sends the end of the answer
	defer e.recover(out, r)
	id := requestID(r.Header.Get(HeaderRequestID))
	w.Header().Set(HeaderRequestID, id)
	if err := e.door.checkHost(r); err != nil {
		e.refused("host")
		Fail(out, err)
		return
	}
	r = r.WithContext(context.WithValue(r.Context(), callKey{}, c))
	if r.ContentLength != 0 {
		body := &timedBody{ReadCloser: r.Body, control: out.control, limits: e.limits, began: time.Now()}
		body.extend()
		r.Body = body
	}
	e.mux.ServeHTTP(out, r)
}

// wrap puts the check of its scope before a route.
func (e *entry) wrap(route Route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := e.door.checkOrigin(r, route.Scope == access.Public); err != nil {
			e.refused("origin")
			Fail(w, err)
			return
		}
		if err := callOf(r.Context()).require(r, route.Scope); err != nil {
			if err.Status == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", "Bearer")
				if toLogin(r) {
					http.Redirect(w, r, LoginPath, http.StatusSeeOther)
					return
				}
			}
			Fail(w, err)
			return
		}
		route.Handle(w, r)
	})
}

// recover answers for a handler that panicked.
func (e *entry) recover(w *writer, r *http.Request) {
	what := recover()
	if what == nil {
		return
	}
	if err, ok := what.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(what) // the way to cut an answer short
	}
	e.bug(r.URL.Path, what, debug.Stack())
	if w.wrote {
		panic(http.ErrAbortHandler)
	}
	Fail(w, fmt.Errorf("a bug stopped the request"))
}

// requestID is the client's, where it can go into logs as it is, or a new one.
func requestID(given string) string {
	if userName(given) {
		return given
	}
	return fmt.Sprintf("%016x", rand.Uint64())
}

// addressOf is the client's address; IPv6 counts by /64, which is what one site has.
func addressOf(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	a := ap.Addr().Unmap()
	if a.Is6() && !a.IsLoopback() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// timedBody reads a body within its deadlines.
type timedBody struct {
	io.ReadCloser
	control *http.ResponseController
	limits  Limits
	began   time.Time
}

// extend gives the next bytes their time.
func (b *timedBody) extend() {
	at := time.Now().Add(b.limits.BodyPause)
	if end := b.began.Add(b.limits.BodyTimeout); end.Before(at) {
		at = end
	}
	_ = b.control.SetReadDeadline(at) // tests without a connection have none
}

// Read implements io.Reader.
func (b *timedBody) Read(p []byte) (int, error) {
	b.extend()
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		// The server goes on reading, to hear of a client that leaves: that has no deadline.
		_ = b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// writer gives each piece of an answer its time.
type writer struct {
	http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
	wrote   bool
}

// piece is what a client must have read within the timeout.
const piece = 256 << 10

func (w *writer) extend() { _ = w.control.SetWriteDeadline(time.Now().Add(w.timeout)) }

// Write implements io.Writer.
func (w *writer) Write(p []byte) (done int, err error) {
	w.wrote = true
	for {
		w.extend()
		n, err := w.ResponseWriter.Write(p[:min(len(p), piece)])
		done += n
		if p = p[n:]; err != nil || len(p) == 0 {
			return done, err
		}
	}
}

// WriteHeader implements http.ResponseWriter.
func (w *writer) WriteHeader(status int) {
	w.wrote = true
	w.ResponseWriter.WriteHeader(status)
}

// FlushError is what http.ResponseController calls.
func (w *writer) FlushError() error {
	w.extend()
	return w.control.Flush()
}

// Unwrap lets http.ResponseController reach the connection.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// newErrorLog takes the lines of net/http itself: broken requests, mostly.
func newErrorLog(to *telemetry.Throttle, name string) *log.Logger {
	return log.New(errorLog{to, name}, "", 0)
}

type errorLog struct {
	to   *telemetry.Throttle
	name string
}

// Write implements io.Writer.
func (l errorLog) Write(line []byte) (int, error) {
	l.to.Event(zerolog.DebugLevel, l.name+" server").Str("listener", l.name).Msg(string(bytes.TrimSpace(line)))
	return len(line), nil
}

// Open serves routes to everybody, as somebody who may do everything. It is for tests: it checks nothing.
func Open(routes ...Route) http.Handler { return OpenAs(access.LocalName, routes...) }

// OpenAs is Open with a name for whoever calls.
func OpenAs(name string, routes ...Route) http.Handler {
	limits := DefaultLimits()
	e := &entry{
		limits: limits, bodies: NewBudget(limits.MaxBodiesBytes), stopping: make(chan struct{}), refused: func(string) {},
		bug: func(path string, what any, stack []byte) { panic(fmt.Sprintf("%s: %v\n%s", path, what, stack)) },
	}
	e.door, _ = newDoor(DefaultAuth(), false, time.Now, []Authenticator{everybody{name}}) // no origins: no error
	m, err := newMux(e.wrap, routes)
	if err != nil {
		panic(err) // a bug of the routes
	}
	e.mux = m
	return e
}

// everybody is somebody of this machine.
type everybody struct{ name string }

// Authenticate implements Authenticator.
func (e everybody) Authenticate(*http.Request) (access.Identity, error) {
	return access.Identity{Name: e.name, Token: "open", Scopes: []access.Scope{access.Admin}, Local: true}, nil
}
