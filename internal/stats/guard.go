package stats

import "math"

// Guard is [Inferiority] made safe for a small arm, as at the first steps of a ramp. The small arm's variance is
// taken to be at least what its units would have with the spread of the larger arm's, as in [Compare].
//
// The reason: clicks are rare and few units bring many of them, so that a small arm that happened to get few
// clicks has seen little of its own variance either. The bound that trusts it calls harm far more often than its
// error says: in 7 to 17 % of simulated runs instead of 5 % (docs/validity.md). Under "not worse than the margin"
// both arms' units are nearly alike, so the larger arm knows the spread better (as in a score test); the larger of
// both keeps the bound safe where they are not.
//
// A margin below 0 asks for a treatment that is larger, as of latencies: at -0.25 the contrast is R_B - 1.25 R_A. There
// "alike" means that everything is 1.25 times as large, and so is the spread that the small treatment borrows.
func Guard(control, treatment RatioSums, margin float64, q Sequence) Interval {
	k := 1 - margin
	va, vb := spread(control, treatment, math.Max(1, k*k))
	v, d := vb+k*k*va, treatment.Rate()-k*control.Rate()
	if !(v > 0) || math.IsNaN(d) {
		return Interval{-1, 1}
	}
	half := q.HalfWidthOneSided(float64(control.N+treatment.N), math.Sqrt(v))
	return Interval{d - half, d + half}
}
