package pairer

import (
	"cmp"
	"fmt"
	"slices"

	"ctrloop/pairer/dataset"
	"ctrloop/pairer/pairs"
	"ctrloop/schemas"
)

// CreativeRows describes each creative that a pair names, with its evidence summed over placements.
func CreativeRows(ps []schemas.Pair, evidence []pairs.Evidence, creatives Creatives) ([]dataset.CreativeRow, error) {
	total := map[string]pairs.Evidence{}
	for _, e := range evidence {
		t := total[e.Creative]
		t.Impressions, t.Clicks = t.Impressions+e.Impressions, t.Clicks+e.Clicks
		total[e.Creative] = t
	}
	prior := pairs.FitPrior(evidence)
	named := map[string]bool{}
	for _, p := range ps {
		named[p.Chosen.Creative], named[p.Rejected.Creative] = true, true
	}
	rows := make([]dataset.CreativeRow, 0, len(named))
	for id := range named {
		c, ok := creatives.Creative(id)
		if !ok {
			return nil, fmt.Errorf(
				"creative %s has labels but is not in %s: was the topic truncated? restore it or exclude the product",
				id,
				schemas.TopicCreatives,
			)
		}
		caption, ok := creatives.Caption(c.Product)
		if !ok {
			return nil, fmt.Errorf(
				"product %s of creative %s is not in the catalogue: start with the catalogue that the creatives were made from",
				c.Product,
				id,
			)
		}
		png, err := creatives.View(c)
		if err != nil {
			return nil, fmt.Errorf("picture of creative %s: %w", id, err)
		}
		t := total[id]
		rows = append(rows, dataset.CreativeRow{
			Creative: id, Product: c.Product, Caption: caption, Description: c.Description, Seed: c.Seed, ImagePNG: png,
			Impressions: t.Impressions, Clicks: t.Clicks, PosteriorMean: prior.Posterior(t).Mean(),
		})
	}
	slices.SortFunc(rows, func(a, b dataset.CreativeRow) int { return cmp.Compare(a.Creative, b.Creative) })
	return rows, nil
}
