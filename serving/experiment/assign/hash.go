package assign

import "strconv"

// The functions of this file follow GrowthBook's SDK specification 0.7.0 (https://docs.growthbook.io/lib/build-your-own),
// so that a unit assigned here falls into the same bucket in any of GrowthBook's SDKs.

const (
	fnvOffset = 2166136261
	fnvPrime  = 16777619
)

// fnv32a over several strings as if they were one, without joining them.
func fnv32a(parts ...string) uint32 {
	h := uint32(fnvOffset)
	for _, s := range parts {
		for i := 0; i < len(s); i++ {
			h = (h ^ uint32(s[i])) * fnvPrime
		}
	}
	return h
}

// Hash maps a value to [0,1) in steps of 1/10,000 (version 2) or 1/1,000 (version 1, biased for similar seeds,
// kept for namespaces). Other versions do not exist: ok is false.
func Hash(seed, value string, version int) (n float64, ok bool) {
	switch version {
	case 1:
		return float64(fnv32a(value, seed)%1000) / 1000, true
	case 2:
		return hash2(seed, value), true
	}
	return 0, false
}

// hash2 is n = fnv32a(decimal(fnv32a(seed + value))) mod 10000 / 10000. It does not allocate.
func hash2(seed, value string) float64 {
	var buf [10]byte // 2^32 has ten digits
	h := uint32(fnvOffset)
	for _, c := range strconv.AppendUint(buf[:0], uint64(fnv32a(seed, value)), 10) {
		h = (h ^ uint32(c)) * fnvPrime
	}
	return float64(h%10000) / 10000
}

// Range is a part of [0,1): Start <= n < End.
type Range struct{ Start, End float64 }

// Contains says whether n lies in the range.
func (r Range) Contains(n float64) bool { return r.Start <= n && n < r.End }

// Choose is the index of the first range that contains n, and -1 when none does.
func Choose(n float64, ranges []Range) int {
	for i, r := range ranges {
		if r.Contains(n) {
			return i
		}
	}
	return -1
}

// EqualWeights splits 1 among n variations; none for n <= 0.
func EqualWeights(n int) []float64 {
	if n <= 0 {
		return nil
	}
	w := make([]float64, n)
	for i := range w {
		w[i] = 1 / float64(n)
	}
	return w
}

// BucketRanges gives each of n variations the part of [0,1) that its weight and the coverage leave it: the
// start depends on the weights alone, so that growing the coverage moves nobody who was in. Coverage is cut to
// [0,1]; weights that do not fit n or do not add up to 1 (within 0.01) are taken as equal.
func BucketRanges(n int, coverage float64, weights []float64) []Range {
	coverage = min(max(coverage, 0), 1)
	sum := 0.0
	for _, w := range weights {
		sum += w
	}
	if len(weights) != n || sum < 0.99 || sum > 1.01 {
		weights = EqualWeights(n)
	}
	out := make([]Range, 0, len(weights))
	at := 0.0
	for _, w := range weights {
		out = append(out, Range{at, at + coverage*w})
		at += w
	}
	return out
}

// Namespace is a part of all units that an experiment has to itself: experiments with disjoint ranges of the
// same name never share a unit.
type Namespace struct {
	Name string
	Range
}

// Contains says whether the unit belongs to the namespace.
func (ns Namespace) Contains(unit string) bool {
	n := float64(fnv32a(unit, "__", ns.Name)%1000) / 1000
	return ns.Range.Contains(n)
}
