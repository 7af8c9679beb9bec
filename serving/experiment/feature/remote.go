package feature

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/experiment/client"
	"ctrloop/serving/experiment/exposure"
)

// Remote keeps the assignment of a ctrloop instance, and takes exposures there. It is a Source and an exposure.Sink. A
// poll that fails leaves what was known: arms are sticky, so an old state is nearly right and none is wrong.
type Remote struct {
	client *client.Client
	etag   string // of the poller
	p      atomic.Pointer[assign.Assigner]
}

var (
	_ Source        = (*Remote)(nil)
	_ exposure.Sink = (*Remote)(nil)
)

// NewRemote asks an instance. Its token wants the scopes read and, for exposures, events:write.
func NewRemote(c *client.Client) *Remote { return &Remote{client: c} }

// Assigner is the newest one; nil before the first answer.
func (r *Remote) Assigner() *assign.Assigner { return r.p.Load() }

// Poll asks every interval until ctx ends; the errors go to failed, which may be nil.
func (r *Remote) Poll(ctx context.Context, every time.Duration, failed func(error)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := r.Fetch(ctx); err != nil && ctx.Err() == nil && failed != nil {
			failed(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Fetch asks once. Not safe for concurrent use.
func (r *Remote) Fetch(ctx context.Context) error {
	st, etag, err := r.client.Assignments(ctx, r.etag)
	if err != nil || st == nil {
		return err
	}
	if len(st.Routes) == 0 {
		return errors.New("assignments: no logical model has a champion yet")
	}
	r.p.Store(assign.New(st))
	r.etag = etag
	return nil
}

// Expose sends exposures.
func (r *Remote) Expose(ctx context.Context, es []exposure.Exposure) error {
	return r.client.Expose(ctx, es)
}
