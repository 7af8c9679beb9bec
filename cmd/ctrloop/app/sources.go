package app

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/png"
	"time"

	"ctrloop/internal/artifact"
	"ctrloop/internal/catalogue"
	"ctrloop/internal/creativelog"
	"ctrloop/internal/imaging"
	"ctrloop/internal/stats"
	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
	"ctrloop/pairer/pairs"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment"
	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/experiment/ramp"

	"encoding/json"
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
	const query = `SELECT product, category, placement, creative, toUInt64(impressions) AS impressions, toUInt64(clicks) AS clicks, from_time, to_time FROM pair_evidence`
	if err := e.db.Select(ctx, &rows, query); err != nil {
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
		if i == 0 || from < span.FromMS {
			span.FromMS = from
		}
		span.ToMS = max(span.ToMS, to)
	}
	return out, span, nil
}

// sums reads an experiment's sums from the warehouse.
type sums struct{ db *warehouse.DB }

// Sums implements experiment.Source.
func (s sums) Sums(ctx context.Context, x control.Experiment, span experiment.Span) (ramp.Sums, error) {
	unit := "toString(user)"
	if x.Unit == "product" {
		unit = "product"
	}
	// The far past and the far future stand for open ends.
	from, to := span.From, span.To
	if from.IsZero() {
		from = time.UnixMilli(0)
	}
	if to.IsZero() {
		to = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	query := `SELECT variant, toInt64(count()) AS n, toFloat64(sum(m)) AS sum_m, toFloat64(sum(d)) AS sum_d,
		toFloat64(sum(m * m)) AS sum_mm, toFloat64(sum(d * d)) AS sum_dd, toFloat64(sum(m * d)) AS sum_md
	FROM (SELECT variant, ` + unit + ` AS unit, toUInt64(sum(clicked)) AS m, toUInt64(count()) AS d FROM labels_mature
		WHERE experiment = ? AND event_time >= fromUnixTimestamp64Milli(?) AND event_time < fromUnixTimestamp64Milli(?) GROUP BY variant, unit)
	GROUP BY variant`
	var rows []struct {
		Variant string  `ch:"variant"`
		N       int64   `ch:"n"`
		M       float64 `ch:"sum_m"`
		D       float64 `ch:"sum_d"`
		MM      float64 `ch:"sum_mm"`
		DD      float64 `ch:"sum_dd"`
		MD      float64 `ch:"sum_md"`
	}
	var out ramp.Sums
	if err := s.db.Select(ctx, &rows, query, x.ID, from.UnixMilli(), to.UnixMilli()); err != nil {
		return out, err
	}
	for _, r := range rows {
		v := stats.RatioSums{N: r.N, M: r.M, D: r.D, MM: r.MM, DD: r.DD, MD: r.MD}
		switch r.Variant {
		case assign.Control:
			out.Control = v
		case assign.Treatment:
			out.Treatment = v
		default:
			return out, fmt.Errorf("experiment %s has impressions of variant %q: want %s or %s", x.ID, r.Variant, assign.Control, assign.Treatment)
		}
	}
	return out, nil
}

// creatives gives the pairer what models see of a creative.
type creatives struct {
	log     *creativelog.Log
	store   *artifact.Store
	catalog *catalogue.Catalogue
	viewPx  int
}

// Creative implements pairer.Creatives.
func (c creatives) Creative(id string) (schemas.Creative, bool) { return c.log.Get(id) }

// View implements pairer.Creatives.
func (c creatives) View(cr schemas.Creative) ([]byte, error) {
	im, err := decodePNG(c.store, cr.Asset)
	if err != nil {
		return nil, err
	}
	px := imaging.View(im, c.viewPx)
	view := image.NewNRGBA(image.Rect(0, 0, c.viewPx, c.viewPx))
	for i := range c.viewPx * c.viewPx {
		copy(view.Pix[4*i:], px[3*i:3*i+3])
		view.Pix[4*i+3] = 255
	}
	var buf bytes.Buffer
	err = imaging.EncodePNG(&buf, view)
	return buf.Bytes(), err
}

// Caption implements pairer.Creatives.
func (c creatives) Caption(product string) (string, bool) {
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
	im, err := png.Decode(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("artifact %s is not a PNG: %w", digest, err)
	}
	if n, ok := im.(*image.NRGBA); ok {
		return n, nil
	}
	n := image.NewNRGBA(im.Bounds())
	for y := im.Bounds().Min.Y; y < im.Bounds().Max.Y; y++ {
		for x := im.Bounds().Min.X; x < im.Bounds().Max.X; x++ {
			n.Set(x, y, im.At(x, y))
		}
	}
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
