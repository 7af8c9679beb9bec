package creatives

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

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
