// Package creatives makes ad images ahead of traffic: the prompt model describes backgrounds for a product, a drawer
// paints them, guards check the finished files, and what passes may serve. Jobs are asynchronous, known by a digest
// of what they are to make, and go on after a restart.
package creatives

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/artifact"
	"ctrloop/internal/catalogue"
	"ctrloop/internal/telemetry"
	"ctrloop/schemas"
	"ctrloop/serving/backend"
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
