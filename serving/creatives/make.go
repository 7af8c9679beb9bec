package creatives

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging"
	"ctrloop/schemas"
	"ctrloop/serving/backend"
	"ctrloop/serving/gateway"
)

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
