// Package creatives makes ad images ahead of traffic: the prompt model describes backgrounds for a product, a drawer
// paints them, guards check the finished files, and what passes may serve. Jobs are asynchronous, known by a digest
// of what they are to make, and go on after a restart.
package creatives

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"ctrloop/internal/artifact"
	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging"
	"ctrloop/internal/telemetry"
	"ctrloop/schemas"
	"ctrloop/serving/backend"
	"ctrloop/serving/gateway"
)

// Publisher writes to topic creatives.v1. It returns when the records are safe.
type Publisher interface {
	Publish(ctx context.Context, cs ...schemas.Creative) error
}

// Model answers chat completions for a logical name or a version, and says which version answered.
type Model interface {
	Chat(ctx context.Context, r backend.ChatRequest) (*backend.ChatResponse, string, error)
}

// ErrBadRequest is wrapped by what Submit finds wrong with a request.
var ErrBadRequest = errors.New("the request cannot be served")

// ErrFull is wrapped when too many pictures wait to be made.
var ErrFull = errors.New("too many creatives wait to be made")

// ErrCanceled is what Ensure returns of a job that somebody canceled.
var ErrCanceled = errors.New("the job was canceled")

// Service makes creatives. Its library is filled by Publish's other end too: put what creatives.v1 holds into it
// before Run, or finished work is done again.
type Service struct {
	cfg      Config
	products *catalogue.Catalogue
	model    Model
	resolve  func(model string) (version string, err error)
	prompter prompter
	drawer   Drawer
	judge    Judge // may be nil
	store    *artifact.Store
	pub      Publisher
	lib      *Library
	log      zerolog.Logger
	limited  *telemetry.Throttle // of log, for what every request may repeat
	m        *metrics

	writes sync.Mutex // held from reading a creative to publishing what was changed in it

	mu    sync.Mutex
	jobs  map[string]*job
	order []string // of jobs, oldest first
	queue []*job
	wake  chan struct{}
}

// Deps are what a Service works with.
type Deps struct {
	Products  *catalogue.Catalogue
	Model     Model
	Resolve   func(model string) (version string, err error) // a logical name or a version -> a version
	Prompting Prompting
	Drawer    Drawer
	Judge     Judge // scores each creative when it is made; nil: nobody does
	Store     *artifact.Store
	Publisher Publisher
	Library   *Library
}

// logEvery is the pace of lines about a fault that repeats.
const logEvery = 10 * time.Second

// New reads the jobs of earlier runs; Run goes on with those that were not finished.
func New(cfg Config, d Deps, log zerolog.Logger, reg prometheus.Registerer) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Service{
		cfg: cfg, products: d.Products, model: d.Model, resolve: d.Resolve, drawer: d.Drawer, judge: d.Judge, store: d.Store, pub: d.Publisher,
		prompter: prompter{Prompting: d.Prompting, views: map[string]string{}},
		lib:      d.Library, log: log, limited: telemetry.NewThrottle(log, logEvery, time.Now), m: newMetrics(reg, d.Library),
		jobs: map[string]*job{}, wake: make(chan struct{}, 1),
	}
	jobs, problems, err := readJobs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("creative jobs: %w", err)
	}
	for _, p := range problems {
		log.Warn().Err(p).Msg("job file ignored")
	}
	for _, j := range jobs {
		s.jobs[j.id] = j
		s.order = append(s.order, j.id)
		if j.state == Queued {
			s.queue = append(s.queue, j)
		}
	}
	return s, nil
}

// Library is what has been made.
func (s *Service) Library() *Library { return s.lib }

// Stats since the start.
func (s *Service) Stats() Stats {
	return Stats{Images: s.m.made.Load(), Blocked: s.m.blocked.Load(), Duplicates: s.m.alike.Load(), PixelError: s.m.worst.Load()}
}

// Request is what POST /v1/creatives takes.
type Request struct {
	Products   []string // nil: all
	Model      string   // a version or a logical name
	PerProduct int      // 0: as configured
	Seed       uint64
}

// Submit queues a job, or finds the one that was queued for the same before: a finished one is returned as it is, one
// with failed products goes on with those. ErrFull: it would make more wait than Config.MaxQueued.
func (s *Service) Submit(r Request) (Progress, error) {
	j, err := s.submit(r, s.cfg.MaxQueued)
	if err != nil {
		return Progress{}, err
	}
	return j.progress(), nil
}

// submit queues unless more than limit pictures would then wait.
func (s *Service) submit(r Request, limit int) (*job, error) {
	spec, err := s.spec(r)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.jobs[spec.ID()]
	if old != nil && !slices.Contains([]JobState{Failed, Canceled}, old.progress().State) {
		return old, nil
	}
	waiting := 0
	for _, j := range s.queue {
		waiting += j.left()
	}
	if more := len(spec.Products) * spec.PerProduct; waiting+more > limit {
		return nil, fmt.Errorf("%w: %d, and this request is for %d more (at most %d): wait, or cancel a job", ErrFull, waiting, more, limit)
	}
	if old != nil && old.progress().State == Failed {
		old.set(Queued)
		s.enqueue(old)
		return old, nil
	}
	if old != nil { // canceled
		s.order = slices.DeleteFunc(s.order, func(id string) bool { return id == old.id })
	}
	j, err := newJob(s.cfg.Dir, spec, time.Now())
	if err != nil {
		return nil, err
	}
	s.jobs[j.id] = j
	s.order = append(s.order, j.id)
	s.forgetOld()
	s.enqueue(j)
	return j, nil
}

func (s *Service) spec(r Request) (Spec, error) {
	if r.PerProduct == 0 {
		r.PerProduct = s.cfg.PerProduct
	}
	if r.PerProduct < 1 || r.PerProduct > maxPerProduct {
		return Spec{}, fmt.Errorf("%w: per_product %d: want 1 to %d", ErrBadRequest, r.PerProduct, maxPerProduct)
	}
	version, err := s.resolve(r.Model)
	if err != nil {
		return Spec{}, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	spec := Spec{Version: version, PerProduct: r.PerProduct, Seed: r.Seed}
	if r.Products == nil {
		for _, p := range s.products.Products() {
			spec.Products = append(spec.Products, p.ID)
		}
	} else {
		spec.Products = slices.Clone(r.Products)
	}
	slices.Sort(spec.Products)
	spec.Products = slices.Compact(spec.Products)
	if len(spec.Products) == 0 {
		return Spec{}, fmt.Errorf("%w: no products", ErrBadRequest)
	}
	for _, id := range spec.Products {
		if _, ok := s.products.Get(id); !ok {
			return Spec{}, fmt.Errorf("%w: the catalogue has no product %q", ErrBadRequest, id)
		}
	}
	return spec, nil
}

// enqueue wants s.mu held.
func (s *Service) enqueue(j *job) {
	s.queue = append(s.queue, j)
	s.m.queue.Set(float64(len(s.queue)))
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// forgetOld wants s.mu held.
func (s *Service) forgetOld() {
	for i := 0; i < len(s.order) && len(s.order) > s.cfg.MaxJobs; {
		j := s.jobs[s.order[i]]
		if st := j.progress().State; st == Queued || st == Running {
			i++
			continue
		}
		_ = os.Remove(j.file)
		delete(s.jobs, j.id)
		s.order = slices.Delete(s.order, i, i+1)
	}
}

// Job finds a job's progress.
func (s *Service) Job(id string) (Progress, bool) {
	s.mu.Lock()
	j := s.jobs[id]
	s.mu.Unlock()
	if j == nil {
		return Progress{}, false
	}
	return j.progress(), true
}

// Ensure has n creatives of every product made with the version, and returns when they are published.
func (s *Service) Ensure(ctx context.Context, version string, n int) error {
	j, err := s.submit(Request{Model: version, PerProduct: n}, math.MaxInt) // what a rollout needs is not turned away
	if err != nil {
		return err
	}
	if err := j.wait(ctx); err != nil {
		return err
	}
	p := j.progress()
	if p.State == Canceled {
		return fmt.Errorf("creatives of %s: %w", version, ErrCanceled)
	}
	for product, why := range p.Errors {
		return fmt.Errorf("%d of %d products have no creatives of %s; %s: %s", len(p.Errors), p.Products, version, product, why)
	}
	return nil
}

// Run works on jobs until ctx ends, in turns where several wait. A job that was interrupted stays queued.
func (s *Service) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		s.mu.Lock()
		var j *job
		if len(s.queue) > 0 {
			j = s.queue[0]
		}
		s.mu.Unlock()
		if j == nil {
			select {
			case <-ctx.Done():
			case <-s.wake:
			}
			continue
		}
		over := s.turn(ctx, j)
		if ctx.Err() != nil {
			break
		}
		s.mu.Lock()
		s.queue = slices.DeleteFunc(s.queue, func(o *job) bool { return o == j })
		if !over {
			s.queue = append(s.queue, j)
		}
		s.m.queue.Set(float64(len(s.queue)))
		s.mu.Unlock()
	}
	return nil
}

// Cancel ends a job: what it has made stays, and nothing goes on after a restart. False: there is no such job, or it has
// ended.
func (s *Service) Cancel(id string) (Progress, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.jobs[id]
	if j == nil || !j.cancel() {
		return Progress{}, false
	}
	if err := os.Remove(j.file); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.Error().Err(err).Str("job", id).Msg("file of a canceled job could not be removed; a restart would go on with it")
	}
	s.queue = slices.DeleteFunc(s.queue, func(o *job) bool { return o == j })
	s.m.queue.Set(float64(len(s.queue)))
	return j.progress(), true
}

// others says whether another job waits.
func (s *Service) others() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue) > 1
}

// turn works on a job: on all of it, or, where others wait, on as many products as are made side by side. True: the job
// has ended.
func (s *Service) turn(ctx context.Context, j *job) bool {
	start := time.Now()
	jobCtx, ok := j.begin(ctx)
	if !ok {
		return true
	}
	var g errgroup.Group
	g.SetLimit(s.cfg.Concurrency)
	todo := j.todo()
	begun := 0
	for _, id := range todo {
		if jobCtx.Err() != nil || begun >= s.cfg.Concurrency && s.others() {
			break
		}
		begun++
		g.Go(func() error {
			r, err := s.product(jobCtx, j.spec, id)
			if jobCtx.Err() != nil {
				return nil // stopped, not failed: the product is done after the restart
			}
			if err != nil {
				r = result{Product: id, Error: err.Error()}
			}
			if err := j.record(r); err != nil {
				s.log.Error().Err(err).Str("job", j.id).Msg("progress could not be written; a restart would repeat the product")
			}
			return nil
		})
	}
	_ = g.Wait()
	if !j.end() {
		return true
	}
	if ctx.Err() != nil || begun < len(todo) {
		return false
	}
	s.finish(j, start)
	return true
}

func (s *Service) finish(j *job, start time.Time) {
	p := j.progress()
	if len(p.Errors) > 0 {
		j.set(Failed)
	} else {
		j.set(Done)
	}
	s.log.Info().Str("job", j.id).Str("version", p.Version).Int("creatives", p.Creatives).Int("blocked", p.Blocked).
		Int("failed_products", len(p.Errors)).Dur("took", time.Since(start)).Msg("creatives made")
}

// product makes one product's share of a job. What exists of it already counts.
func (s *Service) product(ctx context.Context, spec Spec, id string) (result, error) {
	p, ok := s.products.Get(id)
	if !ok {
		return result{}, fmt.Errorf("the catalogue has no product %q any more", id)
	}
	r := result{Product: id}
	known := map[string]bool{} // descriptions
	for _, c := range s.lib.Now().List(id, spec.Version, 10*maxPerProduct) {
		known[c.Description] = true
		if c.Blocked == "" {
			r.Creatives = append(r.Creatives, c.ID)
		} else {
			r.Blocked++
		}
	}
	for round := 0; round < s.cfg.Rounds && len(r.Creatives) < spec.PerProduct; round++ {
		texts, err := s.describe(ctx, spec, p, round, spec.PerProduct-len(r.Creatives), known)
		if err != nil {
			return r, err
		}
		made := make([]schemas.Creative, 0, len(texts))
		for _, text := range texts {
			c, err := s.make(ctx, spec, p, text)
			if err != nil {
				return r, err
			}
			made = append(made, c)
			if c.Blocked == "" {
				r.Creatives = append(r.Creatives, c.ID)
			} else {
				r.Blocked++
			}
		}
		if len(made) == 0 {
			continue
		}
		if err := s.pub.Publish(ctx, made...); err != nil {
			return r, fmt.Errorf("publish creatives: %w", err)
		}
		s.lib.Put(made...)
	}
	if len(r.Creatives) == 0 {
		return r, fmt.Errorf("none of %d creatives may serve (%s)", r.Blocked, "see GET /v1/creatives?product="+id)
	}
	return r, nil
}

// describe asks for want descriptions that the product does not have yet; it may get fewer.
func (s *Service) describe(ctx context.Context, spec Spec, p *catalogue.Product, round, want int, known map[string]bool) ([]string, error) {
	start := time.Now()
	defer func() { s.m.describe.Observe(time.Since(start).Seconds()) }()
	var out []string
	for part := 0; want > 0; part++ {
		n := min(want, maxChoices)
		want -= n
		seed := mix(spec.Seed, spec.Version, p.ID, strconv.Itoa(round), strconv.Itoa(part))
		req, err := s.prompter.request(spec.Version, p, n, seed)
		if err != nil {
			return nil, err
		}
		resp, err := s.chat(ctx, req)
		if err != nil {
			return nil, err
		}
		for _, c := range resp.Choices {
			text := strings.TrimSpace(c.Message.Content)
			if known[text] {
				s.m.alike.Add(1)
				continue
			}
			known[text] = true
			out = append(out, text)
		}
	}
	return out, nil
}

// chat is patient with a model that is full or not there yet.
func (s *Service) chat(ctx context.Context, req backend.ChatRequest) (*backend.ChatResponse, error) {
	deadline := time.Now().Add(s.cfg.Patience)
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		resp, version, err := s.model.Chat(ctx, req)
		if err == nil && version != req.Model {
			return nil, fmt.Errorf("asked version %s, %s answered", req.Model, version)
		}
		if err == nil {
			return resp, nil
		}
		if !gateway.Retryable(err) || time.Now().After(deadline) {
			return nil, fmt.Errorf("describe: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// make draws, checks and stores one creative.
func (s *Service) make(ctx context.Context, spec Spec, p *catalogue.Product, text string) (schemas.Creative, error) {
	start := time.Now()
	defer func() { s.m.draw.Observe(time.Since(start).Seconds()) }()
	// The version is no part of the seed: two versions that say the same draw the same picture, so that an
	// experiment compares what they say and not how the dice fell.
	seed := mix(spec.Seed, "draw", p.ID)
	im, valid, err := s.drawer.Draw(ctx, p, text, seed, s.cfg.SizePx)
	if err != nil {
		return schemas.Creative{}, fmt.Errorf("draw: %w", err)
	}
	var b bytes.Buffer
	if err := imaging.EncodePNG(&b, im); err != nil {
		return schemas.Creative{}, fmt.Errorf("encode: %w", err)
	}
	file, err := annotate(
		b.Bytes(),
		[2]string{"ctrloop:product", p.ID},
		[2]string{"ctrloop:version", spec.Version},
		[2]string{
			"ctrloop:description",
			text,
		},
		[2]string{"ctrloop:backend", s.drawer.Name()},
		[2]string{"ctrloop:seed", strconv.FormatUint(seed, 10)},
	)
	if err != nil {
		return schemas.Creative{}, err
	}
	blocked, pixelError := guard(file, p, s.cfg.SizePx, valid)
	s.m.image(blocked, pixelError)
	digest, err := s.store.PutBytes(file)
	if err != nil {
		return schemas.Creative{}, err
	}
	c := schemas.Creative{
		ID: "c-" + digest[:16], Product: p.ID, Category: p.Category, ModelVersion: spec.Version, Description: text,
		Backend: s.drawer.Name(), Seed: seed, Asset: digest, WidthPx: s.cfg.SizePx, HeightPx: s.cfg.SizePx,
		Valid: valid, Prior: 0.5, Blocked: blocked, Created: time.Now().UTC(),
	}
	if s.judge != nil && valid {
		s.score(ctx, &c, p, file)
	}
	return c, nil
}

// score has the judge score a creative. One that it cannot score may serve all the same: the score guards rollouts,
// which compare many creatives, and says when it has too few.
func (s *Service) score(ctx context.Context, c *schemas.Creative, p *catalogue.Product, file []byte) {
	score, ok, err := s.judge.Score(ctx, p, c.Description, file)
	switch {
	case err == nil && ok && !(score >= 0 && score <= 1):
		err = fmt.Errorf("score %g: want 0 to 1", score)
		fallthrough
	case err != nil:
		s.m.scored.WithLabelValues("failed").Inc()
		s.log.Warn().Err(err).Str("creative", c.ID).Str("judge", s.judge.Name()).Msg("creative has no matching score")
	case !ok:
		s.m.scored.WithLabelValues("cannot_tell").Inc()
	default:
		s.m.scored.WithLabelValues("scored").Inc()
		c.Matching, c.MatchingJudge = score, s.judge.Name()
	}
}
