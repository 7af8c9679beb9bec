package serving

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"ctrloop/internal/access"
	"ctrloop/internal/artifact"
	"ctrloop/internal/catalogue"
	"ctrloop/internal/controllog"
	"ctrloop/internal/httpapi"
	"ctrloop/internal/telemetry"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving/backend"
	"ctrloop/serving/creatives"
	"ctrloop/serving/decide"
	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/gateway"
	"ctrloop/serving/route"
	"ctrloop/serving/swap"
)

// CreativeTopic is creatives.v1, kept in memory (internal/creativelog).
type CreativeTopic interface {
	creatives.Publisher
	All() []schemas.Creative
	Changed() <-chan struct{}
}

// Deps are what serving works with.
type Deps struct {
	Control   control.Log
	Swap      controllog.Leader // the claim on control.RoleSwap
	Creatives CreativeTopic
	Store     *artifact.Store
	Products  *catalogue.Catalogue
	Drawer    creatives.Drawer // nil: the scene renderer
	Work      *telemetry.Work  // whether the states of versions can be told; may be nil
	Judge     creatives.Judge  // of how backgrounds suit products; nil: scores come from elsewhere, or not at all
}

// Service is serving as a whole.
type Service struct {
	cfg      Config
	d        Deps
	clients  []*backend.VLLM
	table    *route.Table
	assign   *liveAssigner
	lib      *creatives.Library
	swap     *swap.Controller
	gateway  *gateway.Gateway
	creative *creatives.Service
	decide   *decide.Service
}

// liveAssigner assigns by the newest control state.
type liveAssigner struct {
	p atomic.Pointer[assign.Assigner]
}

func (l *liveAssigner) Assign(logical string, u assign.Unit) (assign.Assignment, bool) {
	return l.p.Load().Assign(logical, u)
}

// New connects the parts; nothing runs before Run.
func New(cfg Config, d Deps, log zerolog.Logger, reg prometheus.Registerer) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if d.Drawer == nil {
		d.Drawer = creatives.Scene{}
	}
	prompting, err := creatives.ReadPrompting(cfg.Swap.BaseDir)
	if err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, d: d, table: &route.Table{}, assign: &liveAssigner{}, lib: creatives.NewLibrary()}
	s.applyControl()
	s.lib.Put(d.Creatives.All()...)
	replicas := make([]*route.Replica, len(cfg.Replicas))
	for i, address := range cfg.Replicas {
		c, err := backend.NewVLLM(
			backend.VLLMConfig{Address: address, ControlTimeout: cfg.ControlTimeout, ReadTimeout: cfg.ReadTimeout, ChatTimeout: cfg.ChatTimeout},
		)
		if err != nil {
			return nil, fmt.Errorf("replicas: %w", err)
		}
		s.clients = append(s.clients, c)
		replicas[i] = route.NewReplica(c, cfg.Gateway.MaxInFlight)
	}
	s.swap, err = swap.New(cfg.Swap, d.Control, d.Swap, d.Store, replicas, s.table, log.With().Str("part", "swap").Logger(), reg)
	if err != nil {
		return nil, fmt.Errorf("swap: %w", err)
	}
	s.swap.Reports(d.Work)
	if s.gateway, err = gateway.New(cfg.Gateway, s.table, s.assign, s.swap.Suspect, log.With().Str("part", "gateway").Logger(),
		reg); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	deps := creatives.Deps{
		Products:  d.Products,
		Model:     s.gateway,
		Resolve:   s.resolve,
		Prompting: prompting,
		Drawer:    d.Drawer,
		Judge:     d.Judge,
		Store:     d.Store,
		Publisher: d.Creatives,
		Library:   s.lib,
	}
	if s.creative, err = creatives.New(cfg.Creatives, deps, log.With().Str("part", "creatives").Logger(), reg); err != nil {
		return nil, fmt.Errorf("creatives: %w", err)
	}
	if s.decide, err = decide.New(cfg.Decide, s.lib, s.assign, log.With().Str("part", "decide").Logger(), reg); err != nil {
		return nil, fmt.Errorf("decide: %w", err)
	}
	return s, nil
}

// resolve turns a logical name into its champion. A version need not be routable yet: jobs wait for it.
func (s *Service) resolve(model string) (string, error) {
	st := s.d.Control.State()
	if champion := st.Routes[model].Champion; champion != "" {
		return champion, nil
	}
	if m := st.Models[model]; m != nil && m.State != control.ModelFailed {
		return model, nil
	}
	return "", fmt.Errorf("%q: %w", model, route.ErrUnknown)
}

// Run serves until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.swap.Run(ctx) })
	g.Go(func() error { return s.creative.Run(ctx) })
	g.Go(func() error { s.followControl(ctx); return nil })
	g.Go(func() error { s.followCreatives(ctx); return nil })
	err := g.Wait()
	for _, c := range s.clients {
		c.Close()
	}
	return err
}

// applyControl makes decisions follow the control log as it is now: arms, and creatives that people have blocked.
func (s *Service) applyControl() {
	st := s.d.Control.State()
	s.assign.p.Store(assign.New(st))
	why := make(map[string]string, len(st.Blocked))
	for id, b := range st.Blocked {
		why[id] = b.Why()
	}
	s.lib.Block(why)
}

func (s *Service) followControl(ctx context.Context) {
	for ctx.Err() == nil {
		changed := s.d.Control.Changed()
		s.applyControl()
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
}

// creativePause lets changes gather: jobs publish by the thousand, and each look copies all.
const creativePause = 100 * time.Millisecond

func (s *Service) followCreatives(ctx context.Context) {
	for ctx.Err() == nil {
		changed := s.d.Creatives.Changed()
		s.lib.Put(s.d.Creatives.All()...)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		select {
		case <-ctx.Done():
		case <-time.After(creativePause):
		}
	}
}

// Routes are serving's calls.
func (s *Service) Routes() []httpapi.Route {
	return append([]httpapi.Route{
		{Method: http.MethodPost, Path: "/v1/chat/completions", Scope: access.AdsDecide, Handle: s.gateway.ServeHTTP},
		{Method: http.MethodPost, Path: "/v1/decide", Scope: access.AdsDecide, Handle: s.decide.ServeHTTP},
		{Method: http.MethodGet, Path: "/v1/models", Scope: access.Read, Handle: s.models},
		{Method: http.MethodGet, Path: "/v1/models/versions", Scope: access.Read, Handle: s.versions},
		{Method: http.MethodPost, Path: "/v1/models/{logical}/rollback", Scope: access.ModelsPromote, Handle: s.rollBack},
		{Method: http.MethodPost, Path: "/v1/creatives/{id}/block", Scope: access.ModelsPromote, Handle: s.block(control.CreativeBlocked)},
		{Method: http.MethodPost, Path: "/v1/creatives/{id}/unblock", Scope: access.ModelsPromote, Handle: s.block(control.CreativeUnblocked)},
		{Method: http.MethodGet, Path: "/v1/datasets", Scope: access.Read, Handle: s.datasets},
		{Method: http.MethodGet, Path: "/v1/jobs", Scope: access.Read, Handle: s.jobs},
		{Method: http.MethodGet, Path: "/v1/jobs/{id}", Scope: access.Read, Handle: s.job},
		{Method: http.MethodPost, Path: "/v1/jobs/{id}/cancel", Scope: access.ModelsPromote, Handle: s.steerJob(control.JobCancelled)},
		{Method: http.MethodPost, Path: "/v1/jobs/{id}/retry", Scope: access.ModelsPromote, Handle: s.steerJob(control.JobRetried)},
	}, s.creative.Routes()...)
}

// models lists what a chat completion may name: logical models and routable versions.
func (s *Service) models(w http.ResponseWriter, _ *http.Request) {
	type card struct {
		ID       string `json:"id"`
		Object   string `json:"object"`
		OwnedBy  string `json:"owned_by"`
		Parent   string `json:"parent,omitempty"`  // of a version: its logical name
		Version  string `json:"version,omitempty"` // of a logical name: its champion
		Replicas int    `json:"replicas,omitempty"`
		InFlight int64  `json:"in_flight,omitempty"`
	}
	cards := []card{}
	for _, logical := range s.cfg.Swap.Logicals {
		if champion := s.table.Champion(logical); champion != "" {
			cards = append(cards, card{ID: logical, Object: "model", OwnedBy: "ctrloop", Version: champion})
		}
	}
	for _, v := range s.table.Versions() {
		cards = append(
			cards,
			card{ID: v.Name, Object: "model", OwnedBy: "ctrloop", Parent: v.Logical, Replicas: len(v.Replicas), InFlight: v.InFlight()},
		)
	}
	httpapi.Reply(w, http.StatusOK, map[string]any{"object": "list", "data": cards})
}

// Ensure has n creatives of every product made with a version, and returns when they are published.
func (s *Service) Ensure(ctx context.Context, version string, n int) error {
	return s.creative.Ensure(ctx, version, n)
}

// Promote makes a loaded and probed version champion; when it returns, every new request goes to it.
func (s *Service) Promote(ctx context.Context, version string, rollback bool, who, note string) error {
	return s.swap.Promote(ctx, version, rollback, who, note)
}

// BaseDigest is the digest of the base model that the servers run.
func (s *Service) BaseDigest() string { return s.swap.BaseDigest() }

// Health says why nobody can answer for a logical model, nil where somebody can.
func (s *Service) Health(logical string) error {
	champion := s.table.Champion(logical)
	if champion == "" {
		return fmt.Errorf("no version of %s answers yet", logical)
	}
	if v, ok := s.table.Version(champion); !ok || len(v.Replicas) == 0 {
		return fmt.Errorf("%s, the champion of %s, is on no replica that answers", champion, logical)
	}
	return nil
}

// Ready says whether the logical model has a champion that answers.
func (s *Service) Ready(logical string) bool { return s.table.Champion(logical) != "" }

// Stats of serving since the start.
type Stats struct {
	Swap      swap.Stats      `json:"swap"`
	Gateway   gateway.Stats   `json:"gateway"`
	Creatives creatives.Stats `json:"creatives"`
}

// Stats sums up.
func (s *Service) Stats() Stats {
	return Stats{Swap: s.swap.Stats(), Gateway: s.gateway.Stats(), Creatives: s.creative.Stats()}
}
