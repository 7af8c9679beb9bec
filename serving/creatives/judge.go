package creatives

import (
	"context"
	"slices"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging"
)

// Judge says how well a finished creative's background suits its product. Its scores guard rollouts: they are compared
// between arms (metric matching_score), so that a judge must be the same, under the same name, for every version.
type Judge interface {
	// Name goes with each score. A judge that changes how it scores changes its name.
	Name() string
	// Score is in [0,1], 1 for a background that suits the product fully. ok is false where the judge cannot tell;
	// an error is worth a line in the log. Neither stops the creative.
	Score(ctx context.Context, p *catalogue.Product, description string, file []byte) (score float64, ok bool, err error)
}

// CatalogueRule scores 1 where the described scene suits the product's department and the palette its colours, else 0:
// [catalogue.Product.Matches], the rule by which the trainer's held-out matching rate counts. It reads the description
// and never the picture, which is fair where the drawer does what the description says, as the scene renderer does. It
// cannot tell of texts that are not of the scene grammar, nor of departments that the catalogue's rule does not know.
type CatalogueRule struct{}

var _ Judge = CatalogueRule{}

// Name is "catalogue-rule".
func (CatalogueRule) Name() string { return "catalogue-rule" }

// Score judges the description.
func (CatalogueRule) Score(_ context.Context, p *catalogue.Product, description string, _ []byte) (float64, bool, error) {
	d, _, ok := imaging.Parse(description)
	if !ok || !slices.Contains(catalogue.Departments(), p.Department) {
		return 0, false, nil
	}
	if p.Matches(d) {
		return 1, true, nil
	}
	return 0, true, nil
}
