package dataset

import (
	"crypto/sha256"
	"fmt"

	"ctrloop/schemas"
)

// honest returns the pairs that make an honest exam of a model: test pairs with a picture that a training product has, too,
// are left out (a shop that lists one article twice), and how many these were. It is an error if a pair says what its
// creatives contradict. The trainer refuses such data sets as well; here they are told from each other at their source.
func honest(ps []schemas.Pair, creatives []CreativeRow) (kept []schemas.Pair, leaked int, err error) {
	by := make(map[string]*CreativeRow, len(creatives))
	for i := range creatives {
		by[creatives[i].Creative] = &creatives[i]
	}
	if err := checkPairs(ps, by); err != nil {
		return nil, 0, err
	}
	learned := map[string]bool{} // products of training pairs
	for _, p := range ps {
		if p.Split == "train" {
			learned[p.Product] = true
		}
	}
	pictures := map[[sha256.Size]byte]bool{}
	for _, c := range creatives {
		if learned[c.Product] {
			pictures[sha256.Sum256(c.ImagePNG)] = true
		}
	}
	known := func(side schemas.PairSide) bool { return pictures[sha256.Sum256(by[side.Creative].ImagePNG)] }
	for _, p := range ps {
		if p.Split == "test" && learned[p.Product] {
			return nil, 0, fmt.Errorf("data set: product %s is in the training and in the test split", p.Product)
		}
		if p.Split == "test" && (known(p.Chosen) || known(p.Rejected)) {
			leaked++
			continue
		}
		kept = append(kept, p)
	}
	return kept, leaked, nil
}

// checkPairs says which pair is of creatives that are not there, of another product, of one creative twice, or repeated.
func checkPairs(ps []schemas.Pair, by map[string]*CreativeRow) error {
	seen := map[string]bool{}
	for _, p := range ps {
		if seen[p.ID] {
			return fmt.Errorf("data set: pair %s is there twice: it would weigh double", p.ID)
		}
		seen[p.ID] = true
		if p.Chosen.Creative == p.Rejected.Creative {
			return fmt.Errorf("data set: pair %s holds creative %s against itself", p.ID, p.Chosen.Creative)
		}
		for _, id := range []string{p.Chosen.Creative, p.Rejected.Creative} {
			c := by[id]
			if c == nil {
				return fmt.Errorf("data set: pair %s names creative %s, which is not in the data set", p.ID, id)
			}
			if c.Product != p.Product {
				return fmt.Errorf("data set: pair %s is of product %s, and its creative %s of %s", p.ID, p.Product, id, c.Product)
			}
		}
	}
	return nil
}
