package schemas

import "hash/fnv"

// Holdout says whether a product belongs to the held-out part: products that no training may see and on
// which every figure about learning is measured. The choice is a hash of the id, so that it is the same
// in every process and growing the fraction moves no product back into training.
func Holdout(product string, fraction float64) bool {
	h := fnv.New32a()
	_, _ = h.Write([]byte("holdout/" + product))
	return float64(h.Sum32()%10_000) < fraction*10_000
}
