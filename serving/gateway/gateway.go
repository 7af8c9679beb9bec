// Package gateway is the one door to the prompt models. It decides a request's version at admission (the champion,
// an experiment's arm, or a version by name), sends it to a replica on which that version has proved itself, and
// checks that this version answered. Streams pass through; a request is tried again on another replica only where the
// first one did nothing for it, and no byte of an answer has been passed on.
package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/httpapi"
	"ctrloop/internal/telemetry"
	"ctrloop/serving/backend"
	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/route"
)

// Headers of answers: what was decided at admission. Requests may carry HeaderUnit and HeaderProduct.
const (
	HeaderVersion    = "X-Model-Version"
	HeaderExperiment = "X-Experiment"
	HeaderVariant    = "X-Variant"
	HeaderArmShare   = "X-Arm-Share"     // probability of the arm for a unit of the experiment, not a propensity
	HeaderUnit       = "X-Unit"          // the user, for assignment; the body's "user" serves too
	HeaderProduct    = "X-Product"       // for experiments by product
	HeaderForce      = "X-Force-Variant" // "<experiment>:control" or "<experiment>:treatment", for testers
)

// logEvery is the pace of lines about a fault that repeats.
const logEvery = 10 * time.Second

// Gateway is safe for concurrent use.
type Gateway struct {
	cfg     Config
	table   *route.Table
	assign  route.Assigner
	suspect func(r *route.Replica, version string)
	log     zerolog.Logger
	limited *telemetry.Throttle // of log
	m       *metrics
	retries *budget
	timed   func(assign.Assignment, time.Duration)
}

// OnAnswer has f called for each answer, with its assignment and its time from the request's arrival to the end of the
// answer. Call OnAnswer before the first request.
func (g *Gateway) OnAnswer(f func(assign.Assignment, time.Duration)) { g.timed = f }

// New builds a gateway over a route table. suspect is called with replicas that did not answer (empty version) or did
// not know a version that is routed to them.
func New(
	cfg Config,
	table *route.Table,
	a route.Assigner,
	suspect func(*route.Replica, string),
	log zerolog.Logger,
	reg prometheus.Registerer,
) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Gateway{cfg: cfg, table: table, assign: a, suspect: suspect, log: log, m: newMetrics(reg),
		limited: telemetry.NewThrottle(log, logEvery, time.Now), retries: newBudget(cfg.RetryShare)}, nil
}

// Stats since the start.
func (g *Gateway) Stats() Stats {
	return Stats{Requests: g.m.total.Load(), Failed: g.m.failures.Load(), WrongVersion: g.m.wrongs.Load(), Full: g.m.fulls.Load()}
}

// admission is what was decided when the request came in; it does not change any more.
type admission struct {
	*route.Lease
	assign.Assignment
}

func (g *Gateway) admit(model string, u assign.Unit) (*admission, error) {
	a := assign.Assignment{ArmShare: 1}
	name := model
	if g.assign != nil {
		if got, ok := g.assign.Assign(model, u); ok && got.Variant != "" {
			a, name = got, got.Version
		}
	}
	l, err := g.table.Admit(name)
	if errors.Is(err, route.ErrUnknown) && a.Variant == assign.Holdout { // its old version has been unloaded meanwhile
		l, err = g.table.Admit(model)
	}
	if err != nil {
		return nil, fmt.Errorf("model %q: %w", name, err)
	}
	a.Version = l.Name
	return &admission{l, a}, nil
}

// upstream is an answer of the admitted version of which nothing has been passed on yet.
type upstream struct {
	resp    *http.Response
	head    []byte // what was read to check the version
	replica *route.Replica
}

func (u *upstream) close() {
	_ = u.resp.Body.Close()
	u.replica.Release()
}

var (
	errFull   = errors.New("every replica of the model is at its limit")
	errNobody = errors.New("no replica could answer")
	errSpent  = errors.New("too many requests are being tried again: the rest of the replicas is not asked")
)

// send tries the version's replicas, the idlest first. Another one is asked only after an answer that says that nothing
// was done, or that is not passed on, and only as often as the bounds allow: a request that ends one server must not be
// handed to all of them (see dead).
func (g *Gateway) send(ctx context.Context, a *admission, client string, body []byte) (*upstream, error) {
	g.retries.earn()
	var tried []*route.Replica
	var last error
	deaths := 0 // of replicas with this request in hand
	for {
		r, busy := pick(a.Current(), tried)
		if r == nil {
			switch {
			case last != nil:
				return nil, fmt.Errorf("%w: %w", errNobody, last)
			case busy:
				return nil, errFull
			}
			return nil, fmt.Errorf("%w: %s is on none at the moment", errNobody, a.Name)
		}
		tried = append(tried, r)
		u, err := g.attempt(ctx, a, r, client, body)
		if err == nil {
			return u, nil
		}
		r.Release()
		broken := backend.KindOf(err) == backend.Broken
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case broken && (deaths > 0 || !dead(ctx, r)), !broken && !harmless(err), len(tried) > g.cfg.MaxRetries:
			return nil, fmt.Errorf("%w: %w", errNobody, err)
		case backend.KindOf(err) == backend.Unavailable: // nothing was asked of anybody: it costs no budget
		case !g.retries.spend():
			g.m.spent.Inc()
			return nil, fmt.Errorf("%w: %w: %w", errNobody, errSpent, err)
		}
		if broken {
			deaths++
		}
		last = err
		g.m.retries.WithLabelValues(string(backend.KindOf(err))).Inc()
	}
}

// deathCheck bounds how long a replica that broke off is asked whether it lives.
const deathCheck = 500 * time.Millisecond

// dead says whether the whole replica has gone, and not this request alone. A replica that lives would break off the same
// request again, so there is no retry. One that has gone may have been killed by the request itself: hence one retry and no more.
func dead(ctx context.Context, r *route.Replica) bool {
	ctx, cancel := context.WithTimeout(ctx, deathCheck)
	defer cancel()
	return backend.KindOf(r.Health(ctx)) == backend.Unavailable
}

// harmless says whether the same request may be handed to another replica: the first one did no work for it, or its
// work was another version's. Whatever broke off after it was sent may have been broken by it.
func harmless(err error) bool {
	switch backend.KindOf(err) {
	case backend.Unavailable, backend.Overloaded, backend.NotFound, backend.WrongVersion:
		return true
	default:
		return false
	}
}

// avoidance is how long a replica that was not there, or too busy, is asked only when no other is left.
const avoidance = time.Second

// pick takes a place on the replica with the fewest requests, of those that did not fail just now if there are any;
// busy: there are replicas, all full or tried.
func pick(replicas, tried []*route.Replica) (best *route.Replica, busy bool) {
	for {
		best = nil
		for _, r := range replicas {
			if !slices.Contains(tried, r) && (best == nil || better(r, best)) {
				best = r
			}
		}
		if best == nil {
			return nil, busy
		}
		if best.TryAcquire() {
			return best, false
		}
		busy = true
		tried = append(slices.Clip(tried), best) // full: not to be asked again in this round, but not tried either
	}
}

func better(a, b *route.Replica) bool {
	if a.Avoided() != b.Avoided() {
		return b.Avoided()
	}
	return a.InFlight() < b.InFlight()
}

// attempt is one try. With an error nothing has been passed on.
func (g *Gateway) attempt(ctx context.Context, a *admission, r *route.Replica, client string, body []byte) (*upstream, error) {
	resp, err := r.Forward(ctx, client, body)
	if err != nil {
		if ctx.Err() == nil {
			r.Avoid(avoidance)
			g.suspect(r, "")
		}
		return nil, err
	}
	u := &upstream{resp: resp, replica: r}
	if err := g.inspect(ctx, a, u); err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	r.Answered()
	return u, nil
}

// inspect reads as much of the answer as it takes to know who answered: all of it, or the first event of a stream.
func (g *Gateway) inspect(ctx context.Context, a *admission, u *upstream) error {
	r := u.replica
	bad := func(kind backend.Kind, err error) error {
		return &backend.Error{Kind: kind, Op: "chat with " + a.Model, Replica: r.Name(), Status: u.resp.StatusCode, Err: err}
	}
	id, err := u.identify()
	if err != nil { // it died while answering, or does not speak the protocol
		if ctx.Err() == nil {
			g.suspect(r, "")
		}
		return bad(backend.Broken, err)
	}
	if u.resp.StatusCode != http.StatusOK {
		switch kind := backend.Classify(u.resp.StatusCode, u.head); kind {
		case backend.NotFound: // it has lost the adapter: a restart
			g.suspect(r, a.Name)
			return bad(kind, errors.New("the replica does not know the version"))
		case backend.Overloaded:
			r.Avoid(avoidance)
			return bad(kind, nil)
		default: // the server's own words go to the client, be it the client's mistake or the server's
			return nil
		}
	}
	if id.failed {
		return nil // a stream that says what is wrong with its request: the client's to read
	}
	if id.model == a.Model {
		return nil
	}
	g.m.wrong.Inc()
	g.m.wrongs.Add(1)
	g.suspect(r, a.Name)
	g.limited.Event(zerolog.ErrorLevel, "wrong version").Str("replica", r.Name()).Str("admitted", a.Model).Str("answered", id.model).
		Msg("another version answered than was admitted; the answer is not passed on")
	return bad(backend.WrongVersion, fmt.Errorf("%q answered", id.model))
}

// ServeHTTP answers POST /v1/chat/completions.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	g.m.inflight.Inc()
	defer g.m.inflight.Dec() // serve panics to cut a broken stream
	o := g.serve(w, r, start)
	g.m.end(o)
	g.m.latency.Observe(time.Since(start).Seconds())
}

func (g *Gateway) serve(w http.ResponseWriter, r *http.Request, start time.Time) outcome {
	raw, err := httpapi.Body(r, g.cfg.MaxBodyBytes)
	if err != nil {
		if r.Context().Err() != nil {
			return canceled
		}
		return g.refuse(w, err)
	}
	req, err := parseRequest(raw, g.allows)
	if err != nil {
		return g.refuse(w, httpapi.Refuse(http.StatusBadRequest, "send a chat completion as OpenAI's API takes it", "%v", err))
	}
	unit := r.Header.Get(HeaderUnit)
	if unit == "" {
		unit = req.user
	}
	a, err := g.admit(req.model, assign.Unit{User: unit, Product: r.Header.Get(HeaderProduct), Force: r.Header.Get(HeaderForce)})
	if err != nil {
		return g.refuse(w, httpapi.Refuse(http.StatusNotFound, "GET /v1/models lists them", "%v", err))
	}
	defer a.Release()
	if force := r.Header.Get(HeaderForce); force != "" && a.Reason != assign.ByForce {
		return g.refuse(w, httpapi.Refuse(http.StatusBadRequest, "ask for an arm of an experiment that runs, or leave the header out", "%s",
			assign.ForceRefused(force)))
	}
	u, err := g.send(r.Context(), a, httpapi.Client(r), req.withModel(a.Model))
	if err != nil {
		return g.unanswered(w, r, a, err)
	}
	defer u.close()
	h := w.Header()
	if ct := u.resp.Header.Get("Content-Type"); ct != "" {
		h.Set("Content-Type", ct)
	}
	a.headers(h)
	w.WriteHeader(u.resp.StatusCode)
	if _, err := w.Write(u.head); err != nil {
		return canceled
	}
	_ = http.NewResponseController(w).Flush() // the first event of a stream does not wait for the second
	if u.resp.StatusCode >= http.StatusInternalServerError {
		return failed // passed on with its words; the same request is not tried elsewhere
	}
	o := g.pass(r.Context(), w, u.resp.Body)
	if o == served && g.timed != nil {
		g.timed(a.Assignment, time.Since(start))
	}
	return o
}

// pass copies the rest of a stream as it comes.
func (g *Gateway) pass(ctx context.Context, w http.ResponseWriter, body io.Reader) outcome {
	f := http.NewResponseController(w)
	buf := make([]byte, 16<<10)
	for {
		if n, err := body.Read(buf); n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return canceled
			}
			_ = f.Flush()
		} else if errors.Is(err, io.EOF) {
			return served
		} else if ctx.Err() != nil {
			return canceled // the client has closed its stream
		} else if err != nil {
			// Half of the answer is out: cutting the connection is the only honest way to say that it is not whole.
			g.limited.Event(zerolog.WarnLevel, "broke off").Err(err).Msg("answer broke off after its first byte")
			g.m.end(failed)
			panic(http.ErrAbortHandler)
		}
	}
}

func (a *admission) headers(h http.Header) {
	h.Set(HeaderVersion, a.Name)
	h.Set(HeaderArmShare, strconv.FormatFloat(a.ArmShare, 'g', -1, 64))
	if a.Experiment != "" {
		h.Set(HeaderExperiment, a.Experiment)
	}
	if a.Variant != "" {
		h.Set(HeaderVariant, a.Variant)
	}
}

func (g *Gateway) unanswered(w http.ResponseWriter, r *http.Request, a *admission, err error) outcome {
	if r.Context().Err() != nil {
		return canceled
	}
	a.headers(w.Header())
	refused := httpapi.Refuse(http.StatusServiceUnavailable, "come back after Retry-After", "%v", err)
	refused.RetryAfter = g.cfg.RetryAfter
	httpapi.Fail(w, refused)
	if errors.Is(err, errFull) {
		return full
	}
	g.limited.Event(zerolog.WarnLevel, "failed").Err(err).Str("version", a.Name).Msg("request failed")
	return failed
}

func (g *Gateway) refuse(w http.ResponseWriter, err error) outcome {
	httpapi.Fail(w, err)
	return refused
}

// inProcess is the client of what this process asks for itself, above all descriptions of creatives.
const inProcess = "ctrloop"

// Chat is the same door for callers in this process; it returns the version that answered. Retry when Full(err).
func (g *Gateway) Chat(ctx context.Context, req backend.ChatRequest) (*backend.ChatResponse, string, error) {
	a, err := g.admit(req.Model, assign.Unit{})
	if err != nil {
		return nil, "", err
	}
	defer a.Release()
	req.Model = a.Model
	body, err := json.Marshal(req)
	if err != nil {
		return nil, "", err
	}
	u, err := g.send(ctx, a, inProcess, body)
	if err != nil {
		o := failed
		if ctx.Err() != nil {
			o = canceled
		} else if errors.Is(err, errFull) {
			o = full
		} else {
			g.log.Warn().Err(err).Str("version", a.Name).Msg("request failed")
		}
		g.m.end(o)
		return nil, a.Name, err
	}
	defer u.close()
	g.m.end(served)
	if u.resp.StatusCode != http.StatusOK {
		return nil, a.Name, &backend.Error{
			Kind:    backend.Classify(u.resp.StatusCode, u.head),
			Op:      "chat with " + a.Model,
			Replica: u.replica.Name(),
			Status:  u.resp.StatusCode,
			Message: string(u.head[:min(len(u.head), 300)]),
		}
	}
	var out backend.ChatResponse
	if err := json.Unmarshal(u.head, &out); err != nil || len(out.Choices) == 0 {
		return nil, a.Name, &backend.Error{
			Kind:    backend.Protocol,
			Op:      "chat with " + a.Model,
			Replica: u.replica.Name(),
			Err:     err,
			Message: "an answer without choices",
		}
	}
	return &out, a.Name, nil
}

// Retryable says whether the same call of Chat may succeed a little later.
func Retryable(err error) bool {
	return errors.Is(err, errFull) || errors.Is(err, errNobody) || errors.Is(err, route.ErrUnknown)
}
