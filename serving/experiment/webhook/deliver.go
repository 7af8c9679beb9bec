package webhook

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"
)

// delivery is one change on its way to an endpoint.
type delivery struct {
	Payload
	silent bool // of a type that the endpoint did not ask for
}

// queue lists what the endpoint lacks, oldest first, at most as many as the bound.
func (d *Dispatcher) queue(e Endpoint) []delivery {
	st := d.log.State()
	d.mu.Lock()
	have := maps.Clone(d.places[e.Name].Versions)
	d.mu.Unlock()
	var out []delivery
	for id, x := range st.Experiments {
		for _, c := range x.Trail {
			if c.Version > have[id] {
				p := Payload{
					Delivery:   deliveryID(e.Name, id, c.Version),
					Experiment: id,
					Logical:    x.Logical,
					Control:    x.Control,
					Treatment:  x.Treatment,
					Change:     c,
				}
				out = append(out, delivery{p, len(e.Events) > 0 && !slices.Contains(e.Events, c.Type)})
			}
		}
	}
	slices.SortFunc(out, func(a, b delivery) int {
		if a.Experiment == b.Experiment {
			return cmp.Compare(a.Version, b.Version)
		}
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Experiment, b.Experiment))
	})
	return out[:min(len(out), d.cfg.Queue)]
}

func deliveryID(endpoint, experiment string, version int64) string {
	h := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%d", endpoint, experiment, version))
	return hex.EncodeToString(h[:16])
}

// deliver tries until the receiver has taken it, the attempts are used up or ctx ends.
func (d *Dispatcher) deliver(ctx context.Context, e Endpoint, v delivery) {
	if v.silent {
		d.settle(e, v, nil)
		return
	}
	body, err := json.Marshal(v.Payload)
	if err != nil { // cannot happen: strings, numbers and JSON
		d.settle(e, v, &Failure{Error: err.Error()})
		return
	}
	wait := d.cfg.Backoff
	for attempt := 1; ; attempt++ {
		err := d.post(ctx, e, v, body)
		if ctx.Err() != nil {
			return // it comes again after the restart
		}
		if err == nil {
			d.m.deliveries.WithLabelValues(e.Name, "delivered").Inc()
			d.settle(e, v, nil)
			return
		}
		if final := (permanent{}); attempt >= d.cfg.Attempts || errors.As(err, &final) {
			d.m.deliveries.WithLabelValues(e.Name, "gave_up").Inc()
			d.logger.Error().Err(err).Str("endpoint", e.Name).Str("experiment", v.Experiment).Str("delivery", v.Delivery).Int("attempts", attempt).
				Msg("webhook given up; replay it when the receiver works")
			d.settle(e, v, &Failure{Attempts: attempt, Error: err.Error()})
			return
		}
		d.m.deliveries.WithLabelValues(e.Name, "retried").Inc()
		// Half of the wait is drawn, so that many senders do not come back at once.
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait/2 + rand.N(wait/2+1)):
		}
		wait = min(2*wait, d.cfg.MaxBackoff)
	}
}

// permanent is an answer that no repetition changes.
type permanent struct{ error }

func (d *Dispatcher) post(ctx context.Context, e Endpoint, v delivery, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.URL, bytes.NewReader(body))
	if err != nil {
		return permanent{err}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(HeaderDelivery, v.Delivery)
	req.Header.Set(HeaderEvent, string(v.Type))
	req.Header.Set(HeaderSignature, Sign([]byte(e.Secret.Reveal()), body, d.now()))
	res, err := d.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, 200))
	switch c := res.StatusCode; {
	case c/100 == 2:
		return nil
	case c/100 == 5, c == http.StatusRequestTimeout, c == http.StatusTooEarly, c == http.StatusTooManyRequests:
		return fmt.Errorf("%s: %s", res.Status, text)
	default: // redirects too: the address in the configuration is to be the right one
		return permanent{fmt.Errorf("%s: %s", res.Status, text)}
	}
}

// settle remembers that the endpoint has the delivery, or never will.
func (d *Dispatcher) settle(e Endpoint, v delivery, f *Failure) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.places[e.Name]
	if p.Versions[v.Experiment] < v.Version-1 { // set back by a replay meanwhile: that begins earlier
		return
	}
	p.Versions[v.Experiment] = v.Version
	p.GaveUp = slices.DeleteFunc(p.GaveUp, func(g Failure) bool { return g.Delivery == v.Delivery })
	if f != nil {
		f.Delivery, f.Experiment, f.Version, f.Time = v.Delivery, v.Experiment, v.Version, d.now().UTC()
		p.GaveUp = append(p.GaveUp, *f)
		p.GaveUp = p.GaveUp[max(0, len(p.GaveUp)-maxFailures):]
	}
	if err := d.save(); err != nil {
		d.logger.Error().Err(err).Msg("webhooks: what was delivered is not on disk; after a restart it comes again under the same id")
	}
}
