package stats

import (
	"math"

	"gonum.org/v1/gonum/stat/distuv"
)

// UnitsForHalfWidth is the number of units after which the two-sided interval is at most half wide to each
// side, when one unit's standard deviation of the difference is sigma (sigma^2 = n SE^2, which does not
// change with n). +Inf when half is not positive.
func UnitsForHalfWidth(q Sequence, sigma, half float64) float64 {
	if !(half > 0) || math.IsNaN(sigma) {
		return math.Inf(1)
	}
	width := func(n float64) float64 { return q.HalfWidth(n, sigma/math.Sqrt(n)) }
	lo, hi := 1.0, 2.0
	for width(hi) > half {
		lo, hi = hi, hi*2
		if hi > 1e18 {
			return math.Inf(1)
		}
	}
	for range 80 { // the width falls with n: bisection to the last bit that matters
		if mid := (lo + hi) / 2; width(mid) > half {
			lo = mid
		} else {
			hi = mid
		}
	}
	return hi
}

// MDE is the minimum detectable effect, in rate units: a true difference of this size makes the interval
// exclude zero at n units with probability power, because the estimate is then normal around it with
// standard error sigma/sqrt(n) (and at some earlier look with more).
func MDE(q Sequence, n, sigma, power float64) float64 {
	if n <= 0 {
		return math.Inf(1)
	}
	se := sigma / math.Sqrt(n)
	return q.HalfWidth(n, se) + se*distuv.UnitNormal.Quantile(power)
}
