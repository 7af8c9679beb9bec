package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image"
	"image/draw"
	"time"

	"ctrloop/internal/artifact"
	"ctrloop/internal/catalogue"
	"ctrloop/internal/creativelog"
	"ctrloop/internal/imaging"
	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
	"ctrloop/internal/warehouse/query"
	sums "ctrloop/pairer/evidence"
	"ctrloop/pairer/pairs"
	"ctrloop/schemas"
	"ctrloop/serving/creatives"
)

// evidence reads the pairer's evidence from the warehouse.
type evidence struct{ db *warehouse.DB }

// Evidence implements pairer.Source. The span ends at the mature horizon: what it covers is complete.
func (e evidence) Evidence(ctx context.Context) ([]pairs.Evidence, pairs.Span, error) {
	var rows []struct {
		Product     string    `ch:"product"`
		Category    string    `ch:"category"`
		Placement   string    `ch:"placement"`
		Creative    string    `ch:"creative"`
		Impressions uint64    `ch:"impressions"`
		Clicks      uint64    `ch:"clicks"`
		From        time.Time `ch:"from_time"`
		To          time.Time `ch:"to_time"`
	}
	if err := e.db.Select(ctx, &rows, query.Text("evidence")); err != nil {
		return nil, pairs.Span{}, err
	}
	out := make([]pairs.Evidence, len(rows))
	var span pairs.Span
	for i, r := range rows {
		out[i] = pairs.Evidence{
			Product: r.Product, Category: r.Category, Placement: r.Placement, Creative: r.Creative,
			Impressions: int64(r.Impressions), Clicks: int64(r.Clicks),
		}
		from, to := r.From.UnixMilli(), r.To.UnixMilli()
		out[i].Span = pairs.Span{FromMS: from, ToMS: to}
		if i == 0 || from < span.FromMS {
			span.FromMS = from
		}
		span.ToMS = max(span.ToMS, to)
	}
	return out, span, nil
}

// MatureMS implements stage.Warehouse.
func (e evidence) MatureMS(ctx context.Context) (ms int64, err error) {
	err = e.db.QueryRow(ctx, query.Text("evidence_horizon")).Scan(&ms)
	return ms, err
}

// Hours implements stage.Warehouse.
func (e evidence) Hours(ctx context.Context, fromMS, untilMS int64) ([]sums.Hour, error) {
	var rows []struct {
		HourMS         int64 `ch:"hour_ms"`
		Impressions    int64 `ch:"impressions"`
		Clicks         int64 `ch:"clicks"`
		Inverse        int64 `ch:"inverses"`
		ClickedInverse int64 `ch:"clicked_inverses"`
	}
	if err := e.db.Select(ctx, &rows, query.Text("evidence_hours"), fromMS/1000, untilMS/1000); err != nil {
		return nil, err
	}
	out := make([]sums.Hour, len(rows))
	for i, r := range rows {
		out[i] = sums.Hour(r)
	}
	return out, nil
}

// pairCreatives gives the pairer what models see of a creative.
type pairCreatives struct {
	log     *creativelog.Log
	store   *artifact.Store
	catalog *catalogue.Catalogue
	px      int // side of a view
}

// Creative implements pairer.Creatives.
func (c pairCreatives) Creative(id string) (schemas.Creative, bool) { return c.log.Get(id) }

// View implements pairer.Creatives.
func (c pairCreatives) View(cr schemas.Creative) ([]byte, error) {
	im, err := decodePNG(c.store, cr.Asset)
	if err != nil {
		return nil, err
	}
	return View(im, c.px)
}

// viewPx is the side of the view of a base model in its folder (empty: the shipped one). Data sets hold views of that
// size, which is also what training draws and serving sends: prompting.json is the one place that says it.
func viewPx(base string) (int, error) {
	if base == "" {
		return EmbeddedViewPx, nil
	}
	p, err := creatives.ReadPrompting(base)
	return p.ViewPx, err
}

// View is a picture as models see it, px pixels square, PNG.
func View(im *image.NRGBA, px int) ([]byte, error) {
	rgb := imaging.View(im, px)
	view := image.NewNRGBA(image.Rect(0, 0, px, px))
	for i := range px * px {
		copy(view.Pix[4*i:], rgb[3*i:3*i+3])
		view.Pix[4*i+3] = 255
	}
	var buf bytes.Buffer
	err := imaging.EncodePNG(&buf, view)
	return buf.Bytes(), err
}

// Caption implements pairer.Creatives.
func (c pairCreatives) Caption(product string) (string, bool) {
	p, ok := c.catalog.Get(product)
	if !ok {
		return "", false
	}
	return p.Caption(), true
}

// decodePNG reads a creative's picture from the store.
func decodePNG(store *artifact.Store, digest string) (*image.NRGBA, error) {
	b, err := store.Bytes(digest)
	if err != nil {
		return nil, err
	}
	im, err := imaging.DecodePNG(b, imaging.MaxSidePx)
	if err != nil {
		return nil, fmt.Errorf("artifact %s is not a PNG: %w", digest, err)
	}
	switch im := im.(type) {
	case *image.NRGBA:
		return im, nil
	case *image.RGBA:
		if im.Opaque() { // premultiplied by 1: the same bytes, and creatives come by the thousand
			return &image.NRGBA{Pix: im.Pix, Stride: im.Stride, Rect: im.Rect}, nil
		}
	}
	n := image.NewNRGBA(im.Bounds())
	draw.Draw(n, n.Rect, im, im.Bounds().Min, draw.Src)
	return n, nil
}

// pairTopic publishes pairs.
type pairTopic struct{ producer *stream.Producer }

// PublishPairs implements pairer.Publisher.
func (p pairTopic) PublishPairs(ctx context.Context, ps []schemas.Pair) error {
	recs := make([]*stream.Record, len(ps))
	for i, pair := range ps {
		raw, err := json.Marshal(pair)
		if err != nil {
			return fmt.Errorf("encode pair %s: %w", pair.ID, err)
		}
		recs[i] = &stream.Record{Topic: schemas.TopicPairs, Key: []byte(pair.Product), Value: raw, Timestamp: time.UnixMilli(pair.ToMS)}
	}
	return p.producer.Produce(ctx, recs...)
}
