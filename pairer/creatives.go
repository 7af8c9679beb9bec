package pairer

import (
	"cmp"
	"slices"

	"ctrloop/pairer/dataset"
	"ctrloop/pairer/pairs"
	"ctrloop/schemas"
)

// Reason says why a creative is left out of evidence or of a data set. The list is closed.
type Reason string

// Reasons.
const (
	UnknownCreative Reason = "unknown_creative" // not in creatives.v1: nobody made it here, or the topic was truncated
	OtherProduct    Reason = "other_product"    // it was reported for another product than the one it was made for
	UnknownProduct  Reason = "unknown_product"  // the catalogue does not have its product
	NoPicture       Reason = "no_picture"       // its picture cannot be read
)

func reasons() []Reason { return []Reason{UnknownCreative, OtherProduct, UnknownProduct, NoPicture} }

// LeftOut counts creatives by the reason for which they were left out.
type LeftOut map[Reason]int

// usable is the evidence that can be learned from, and the creatives that cannot. Ids come from clients,
// so an id that was not made here must cost no more than its own evidence: it changes neither the prior nor the training of the rest.
func usable(evidence []pairs.Evidence, creatives Creatives) ([]pairs.Evidence, LeftOut) {
	left := LeftOut{}
	out := make([]pairs.Evidence, 0, len(evidence))
	type pair struct{ product, creative string }
	verdicts := map[pair]Reason{}
	for _, e := range evidence {
		k := pair{e.Product, e.Creative}
		why, judged := verdicts[k]
		if !judged {
			if why = whyNot(e, creatives); why != "" {
				left[why]++
			}
			verdicts[k] = why
		}
		if why == "" {
			out = append(out, e)
		}
	}
	return out, left
}

// whyNot says why evidence on a creative cannot be learned from; empty: it can.
func whyNot(e pairs.Evidence, creatives Creatives) Reason {
	c, ok := creatives.Creative(e.Creative)
	if !ok {
		return UnknownCreative
	}
	if c.Product != e.Product {
		return OtherProduct
	}
	if _, ok := creatives.Caption(c.Product); !ok {
		return UnknownProduct
	}
	return ""
}

// CreativeRows describes each creative that a pair names, with its evidence summed over placements. left has the ones that
// cannot be described, with the reason: pairs that name them must not go into a data set.
func CreativeRows(ps []schemas.Pair, evidence []pairs.Evidence, creatives Creatives) (rows []dataset.CreativeRow, left map[string]Reason) {
	total := map[string]pairs.Evidence{}
	for _, e := range evidence {
		t := total[e.Creative]
		t.Impressions, t.Clicks = t.Impressions+e.Impressions, t.Clicks+e.Clicks
		total[e.Creative] = t
	}
	prior := pairs.FitPrior(evidence)
	product := map[string]string{}
	for _, p := range ps {
		product[p.Chosen.Creative], product[p.Rejected.Creative] = p.Product, p.Product
	}
	rows, left = make([]dataset.CreativeRow, 0, len(product)), map[string]Reason{}
	for id, product := range product {
		if why := whyNot(pairs.Evidence{Product: product, Creative: id}, creatives); why != "" {
			left[id] = why
			continue
		}
		c, _ := creatives.Creative(id)
		caption, _ := creatives.Caption(product)
		png, err := creatives.View(c)
		if err != nil {
			left[id] = NoPicture
			continue
		}
		t := total[id]
		rows = append(rows, dataset.CreativeRow{
			Creative: id, Product: c.Product, Caption: caption, Description: c.Description, Seed: c.Seed, ImagePNG: png,
			Impressions: t.Impressions, Clicks: t.Clicks, PosteriorMean: prior.Posterior(t).Mean(),
		})
	}
	slices.SortFunc(rows, func(a, b dataset.CreativeRow) int { return cmp.Compare(a.Creative, b.Creative) })
	return rows, left
}
