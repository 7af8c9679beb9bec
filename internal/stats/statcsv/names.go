package statcsv

import (
	"fmt"
	"io"
)

// Names numbers the creatives and products of a log and a policy alike, so that both are of the form of
// [ReadLog]: a creative is an item, and its product the position, the context that a policy depends on.
type Names struct{ creatives, products map[string]int64 }

// NewNames knows none.
func NewNames() *Names {
	return &Names{creatives: map[string]int64{}, products: map[string]int64{}}
}

func number(of map[string]int64, name string) int64 {
	n, ok := of[name]
	if !ok {
		n = int64(len(of))
		of[name] = n
	}
	return n
}

// ReadPolicy reads product,creative,probability. The probabilities of a product must add up to 1 (1e-6).
func (n *Names) ReadPolicy(in io.Reader) (*Policy, error) {
	return readPolicy(in, []string{"creative", "product", "probability"}, func(t *table, i int) (int64, error) {
		name := t.text(i)
		if name == "" {
			return 0, t.bad(i, "empty")
		}
		if i == 0 {
			return number(n.creatives, name), nil
		}
		return number(n.products, name), nil
	})
}

// Add adds a decision to a log. A product that the policy does not know is an error.
func (n *Names) Add(l *Log, product, creative string, clicked bool, propensity float64) error {
	if _, ok := n.products[product]; !ok {
		return fmt.Errorf("%w: the log has product %q, for which the policy has no probabilities", ErrInput, product)
	}
	if !(propensity > 0 && propensity <= 1) {
		return fmt.Errorf("%w: creative %q was logged with propensity %g, want one in (0,1]", ErrInput, creative, propensity)
	}
	click := 0.0
	if clicked {
		click = 1
	}
	l.Item, l.Position = append(l.Item, number(n.creatives, creative)), append(l.Position, n.products[product])
	l.Click, l.Propensity = append(l.Click, click), append(l.Propensity, propensity)
	return nil
}
