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
	if lies := contradictions(Rows(ps), by); len(lies) > 0 {
		return nil, 0, fmt.Errorf("data set: %s", lies[0])
	}
	learned := map[string]bool{} // products of training pairs
	for _, p := range ps {
		if p.Split == splitTrain {
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
		if p.Split == splitTest && learned[p.Product] {
			return nil, 0, fmt.Errorf("data set: product %s is in the training and in the test split", p.Product)
		}
		if p.Split == splitTest && (known(p.Chosen) || known(p.Rejected)) {
			leaked++
			continue
		}
		kept = append(kept, p)
	}
	return kept, leaked, nil
}

// contradictions are what pairs say that their creatives do not: creatives that are not there, of another product, one creative twice;
// and pairs that are repeated.
func contradictions(rows []PairRow, by map[string]*CreativeRow) (out []string) {
	bad := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	seen := map[string]bool{}
	for _, p := range rows {
		if seen[p.PairID] {
			bad("pair %s is there twice: it would weigh double", p.PairID)
		}
		seen[p.PairID] = true
		if p.Left == p.Right {
			bad("pair %s holds creative %s against itself", p.PairID, p.Left)
		}
		for _, id := range p.creatives() {
			switch c := by[id]; {
			case c == nil:
				bad("pair %s names creative %s, which is not in the data set", p.PairID, id)
			case c.Product != p.Product:
				bad("pair %s is of product %s, and its creative %s of %s", p.PairID, p.Product, id, c.Product)
			}
		}
	}
	return out
}

// creatives are the better and the worse one.
func (p PairRow) creatives() [2]string {
	if p.LeftWins {
		return [2]string{p.Left, p.Right}
	}
	return [2]string{p.Right, p.Left}
}
