// Package decide picks the creative for an ad slot: the experiment's arm gives the model version, a fair draw one of
// that version's creatives. A small share of the traffic explores instead: uniform over every version's creatives,
// labelled, and for that an unbiased test set. With each choice goes its propensity: the exact probability of this
// creative for this request over everything random in its way, which is exploration, the arm and the draw within it.
package decide

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	crand "crypto/rand"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/httpapi"
	"ctrloop/schemas"
	"ctrloop/serving/creatives"
	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/route"
)

// Logical is the logical model whose versions compete.
const Logical = "prompt"

// MaxBatch bounds the decisions of one call.
const MaxBatch = 5000

// Policies name how a creative was chosen. The list is closed.
const (
	PolicyUniform  = "uniform"  // among the creatives of the assigned version
	PolicyFallback = "fallback" // the assigned version has none for the product: among all of the product's
	PolicyExplore  = "explore"  // among all of the product's; of a unit of experiment x: ExploredFrom(x)
)

// ExploredFrom is the policy of an exploration whose unit belongs to the experiment. The impression is no part of the
// experiment, but of its log of decisions: the propensities of the experiment's impressions count exploration in, so
// they are those of both together.
func ExploredFrom(experiment string) string { return PolicyExplore + ":" + experiment }

// VariantExplore marks exploration; such impressions belong to no experiment.
const VariantExplore = "explore"

// Config of decisions.
type Config struct {
	// Epsilon is the share of decisions that explore, [0,1].
	Epsilon float64 `yaml:"epsilon"`
	// Seed of the draws; 0 takes one from the system. Only simulations want another.
	Seed uint64 `yaml:"seed"`
	// PublicURL goes before /v1/creatives/... in creative_url; empty gives a path.
	PublicURL string `yaml:"public_url"`
	// MaxBodyBytes bounds a request.
	MaxBodyBytes int64 `yaml:"max_body_bytes"`
}

// Default is the configuration of an embedded run.
func Default() Config { return Config{Epsilon: 0.02, MaxBodyBytes: 8 << 20} }

// Validate returns every problem of the configuration, each with its path.
func (c Config) Validate() error {
	var errs []error
	if !(c.Epsilon >= 0 && c.Epsilon <= 1) {
		errs = append(errs, fmt.Errorf("epsilon: %v: want 0 to 1", c.Epsilon))
	}
	if c.MaxBodyBytes < 1024 {
		errs = append(errs, fmt.Errorf("max_body_bytes: %d: want at least 1024", c.MaxBodyBytes))
	}
	return errors.Join(errs...)
}

// User is a user id. JSON may give a number or a string; 7 and "7" are the same user.
type User string

// UnmarshalJSON takes a string or a whole number.
func (u *User) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		var s string
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		*u = User(s)
		return nil
	}
	if string(b) == "null" {
		return nil
	}
	if bytes.IndexFunc(b, func(r rune) bool { return (r < '0' || r > '9') && r != '-' }) >= 0 {
		return fmt.Errorf("user: %s: want a string or a whole number", b)
	}
	*u = User(b)
	return nil
}

// Attributes are those that targeting may ask for. JSON may give text, numbers and booleans; a number is compared as one and
// is the same attribute as its text.
type Attributes map[string]string

// UnmarshalJSON takes an object of strings, numbers and booleans.
func (a *Attributes) UnmarshalJSON(b []byte) error {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	out := make(Attributes, len(raw))
	for k, v := range raw {
		switch v[0] {
		case '"':
			var s string
			if err := json.Unmarshal(v, &s); err != nil {
				return err
			}
			out[k] = s
		case '{', '[', 'n':
			return fmt.Errorf("attributes: %q: %s: want text, a number or a boolean", k, v)
		default:
			out[k] = string(v)
		}
	}
	*a = out
	return nil
}

// maxTimeMS is the last time that an impression id can carry (48 bits of milliseconds).
const maxTimeMS = 1<<48 - 1

// Request is one ad slot to fill.
type Request struct {
	User      User   `json:"user"`
	Product   string `json:"product"`
	Placement string `json:"placement"`
	Position  uint32 `json:"position"`
	TimeMS    int64  `json:"time_ms"` // event time, 0: now
	// Attributes for the targeting of experiments, beside product, category and placement: country, device, ...
	Attributes Attributes `json:"attributes"`
	// Force asks for an arm, "<experiment>:control" or "<experiment>:treatment", for testers. The impression then
	// belongs to no experiment and is never an exploration.
	Force string `json:"force"`
}

// Decision is what to show, and what the impression must carry.
type Decision struct {
	ImpressionID string `json:"impression_id"`
	Creative     string `json:"creative"`
	CreativeURL  string `json:"creative_url"`
	Experiment   string `json:"experiment"`
	Variant      string `json:"variant"`
	ModelVersion string `json:"model_version"`
	Policy       string `json:"policy"`
	// Propensity is the probability of this creative for this request, over exploration, the arm and the draw, (0,1].
	Propensity float64 `json:"propensity"`
	// ArmShare is the probability of the variant for a unit of the experiment, (0,1]; 1 without an experiment. It says how the
	// traffic is split and nothing of the creative.
	ArmShare  float64 `json:"arm_share"`
	Product   string  `json:"product"`
	Placement string  `json:"placement,omitempty"`
	Position  uint32  `json:"position,omitempty"`
	Error     string  `json:"error,omitempty"`

	Wrong bool `json:"-"` // Error is about the request, which can never be right
}

// refuse sets the error of a request that can never be right.
func (d *Decision) refuse(what string) Decision {
	d.Error, d.Wrong = what, true
	return *d
}

// Service decides. Safe for concurrent use.
type Service struct {
	cfg    Config
	lib    *creatives.Library
	assign route.Assigner
	log    zerolog.Logger
	m      *metrics
	now    func() time.Time

	mu  sync.Mutex // of rng
	rng *rand.ChaCha8
}

// New builds a decider over a library.
func New(cfg Config, lib *creatives.Library, a route.Assigner, log zerolog.Logger, reg prometheus.Registerer) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	var seed [32]byte
	if cfg.Seed == 0 {
		_, _ = crand.Read(seed[:]) // never fails
	} else {
		for i := range 4 {
			s := cfg.Seed * uint64(2*i+1)
			for k := range 8 {
				seed[8*i+k] = byte(s >> (8 * k))
			}
		}
	}
	return &Service{cfg: cfg, lib: lib, assign: a, log: log, m: newMetrics(reg), now: time.Now, rng: rand.NewChaCha8(seed)}, nil
}

// Decide fills slots, each on its own; a slot that cannot be filled has its Error set.
func (s *Service) Decide(reqs []Request, out []Decision) []Decision {
	view := s.lib.Now()
	now := s.now().UnixMilli()
	g := s.fork()
	var n counts
	for i := range reqs {
		out = append(out, s.one(view, g, now, &reqs[i]))
		n.add(&out[len(out)-1])
	}
	s.m.add(n)
	return out
}

// fork gives a generator of its own to a batch, so that batches do not wait for each other.
func (s *Service) fork() *rand.PCG {
	s.mu.Lock()
	defer s.mu.Unlock()
	return rand.NewPCG(s.rng.Uint64(), s.rng.Uint64())
}

func (s *Service) one(view *creatives.View, g *rand.PCG, now int64, r *Request) Decision {
	d := Decision{Product: r.Product, Placement: r.Placement, Position: r.Position}
	if r.TimeMS < 0 || r.TimeMS > maxTimeMS {
		return d.refuse(fmt.Sprintf("time_ms %d: want the event time in Unix milliseconds, 0 (now) to %d", r.TimeMS, int64(maxTimeMS)))
	}
	shelf := view.Shelf(r.Product)
	if shelf == nil || len(shelf.All) == 0 {
		d.Error = "product " + strconv.Quote(r.Product) + " has no creative that may serve: POST /v1/creatives makes them"
		return d
	}
	a, ok := s.assign.Assign(Logical, assign.Unit{
		User: string(r.User), Product: r.Product, Category: shelf.All[0].Category, Placement: r.Placement, Attributes: r.Attributes,
		Force: r.Force,
	})
	epsilon := s.cfg.Epsilon
	switch {
	case !ok:
		d.Error = "no model version is champion yet"
		return d
	case r.Force != "" && a.Reason != assign.ByForce:
		return d.refuse(assign.ForceRefused(r.Force))
	case r.Force != "": // a tester gets what was asked for
		epsilon = 0
	}
	pool, own := poolOf(shelf, a.Version)
	switch {
	case epsilon > 0 && unit(g) < epsilon:
		pool = shelf.All
		d.Variant, d.Policy, d.ArmShare = VariantExplore, PolicyExplore, 1
		if a.Experiment != "" {
			d.Policy = ExploredFrom(a.Experiment)
		}
	case own:
		d.Experiment, d.Variant, d.Policy, d.ArmShare = a.Experiment, a.Variant, PolicyUniform, a.ArmShare
	default:
		// The unit stays in its arm (intention to treat): leaving it out would bias the arms against each other.
		d.Experiment, d.Variant, d.Policy, d.ArmShare = a.Experiment, a.Variant, PolicyFallback, a.ArmShare
	}
	c := &pool[pick(g, len(pool))]
	d.Creative, d.ModelVersion, d.Propensity = c.ID, c.ModelVersion, propensity(shelf, c, &a, epsilon)
	d.CreativeURL = s.cfg.PublicURL + "/v1/creatives/" + c.ID + ".png"
	ms := r.TimeMS
	if ms == 0 {
		ms = now
	}
	d.ImpressionID = impression(g, ms)
	return d
}

// poolOf are the creatives that a version's draw is among: its own, or else all of the product's.
func poolOf(shelf *creatives.Shelf, version string) (pool []schemas.Creative, own bool) {
	if pool = shelf.ByVersion[version]; len(pool) > 0 {
		return pool, true
	}
	return shelf.All, false
}

// propensity of the creative for a request of this unit: epsilon of the exploration's draw, and of the rest each arm's
// share of that arm's draw.
func propensity(shelf *creatives.Shelf, c *schemas.Creative, a *assign.Assignment, epsilon float64) float64 {
	drawn := func(version string) float64 {
		pool, own := poolOf(shelf, version)
		if own && c.ModelVersion != version {
			return 0
		}
		return 1 / float64(len(pool))
	}
	p := a.ArmShare * drawn(a.Version)
	if a.Other != "" {
		p += (1 - a.ArmShare) * drawn(a.Other)
	}
	return epsilon/float64(len(shelf.All)) + (1-epsilon)*p
}

// unit draws from [0,1).
func unit(g *rand.PCG) float64 { return float64(g.Uint64()>>11) / (1 << 53) }

// pick draws from 0..n-1. Products are small, so the bias of the multiplication, below n/2^32, is nil.
func pick(g *rand.PCG, n int) int { return int(g.Uint64() >> 32 * uint64(n) >> 32) }

func impression(g *rand.PCG, ms int64) string {
	var random [10]byte
	a, b := g.Uint64(), g.Uint64()
	for i := range 8 {
		random[i] = byte(a >> (8 * i))
	}
	random[8], random[9] = byte(b), byte(b>>8)
	return schemas.NewImpressionID(time.UnixMilli(ms), random).String()
}

// ServeHTTP answers POST /v1/decide: one request object, or {"requests": [...]} and then {"decisions": [...]}.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	var body struct {
		Request
		Requests []Request `json:"requests"`
	}
	if err := httpapi.ReadJSON(r, s.cfg.MaxBodyBytes, &body); err != nil {
		httpapi.Fail(w, err)
		return
	}
	if len(body.Requests) > MaxBatch {
		httpapi.Fail(w, httpapi.Refuse(http.StatusRequestEntityTooLarge, fmt.Sprintf("send at most %d at once", MaxBatch),
			"%d requests in one call", len(body.Requests)))
		return
	}
	if body.Requests == nil {
		s.serveOne(w, body.Request)
	} else {
		out := s.Decide(body.Requests, make([]Decision, 0, len(body.Requests)))
		httpapi.ReplyRaw(w, http.StatusOK, encodeBatch(out))
	}
	s.m.latency.Observe(time.Since(start).Seconds())
}

func (s *Service) serveOne(w http.ResponseWriter, r Request) {
	d := s.Decide([]Request{r}, make([]Decision, 0, 1))[0]
	switch {
	case d.Wrong:
		httpapi.Fail(w, httpapi.Refuse(http.StatusBadRequest, "mend the request", "%s", d.Error))
		return
	case d.Error != "":
		httpapi.Fail(w, httpapi.Refuse(http.StatusNotFound, "ask again when there is one", "%s", d.Error))
		return
	}
	httpapi.ReplyRaw(w, http.StatusOK, d.append(nil))
}
