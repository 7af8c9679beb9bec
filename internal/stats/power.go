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
	return firstBelow(width, half)
}

// firstBelow is the least n >= 1 at which a falling function is at most limit; +Inf beyond 1e18.
func firstBelow(f func(n float64) float64, limit float64) float64 {
	lo, hi := 1.0, 1.0
	for f(hi) > limit {
		lo, hi = hi, hi*2
		if hi > 1e18 {
			return math.Inf(1)
		}
	}
	for range 80 { // bisection to the last bit that matters
		if mid := (lo + hi) / 2; f(mid) > limit {
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

// Power is the probability that the interval excludes zero at n units when the true difference is effect:
// the estimate is then normal around it with standard error sigma/sqrt(n), sigma as in [UnitsForHalfWidth]. The
// probability of having decided by n is higher, as earlier looks count.
func Power(q Sequence, n, sigma, effect float64) float64 {
	if n <= 0 || !(sigma > 0) {
		return 0
	}
	return powerAt(effect*math.Sqrt(n)/sigma, q.z(n))
}

// powerAt is the probability that a normal variable around shift with deviation 1 is beyond +-critical.
func powerAt(shift, critical float64) float64 {
	return distuv.UnitNormal.Survival(critical-shift) + distuv.UnitNormal.CDF(-critical-shift)
}

// UnitsToDetect is the number of units (of both arms) at which [Power] reaches power for a true difference of
// effect. +Inf where it never does, as for an effect of 0.
func UnitsToDetect(q Sequence, sigma, effect, power float64) float64 {
	if effect == 0 || !(sigma > 0) || !(power > 0 && power < 1) || bad(effect) {
		return math.Inf(1)
	}
	return firstBelow(func(n float64) float64 { return power - Power(q, n, sigma, effect) }, 0)
}

// SigmaFromBaseline is one unit's standard deviation of the difference between two arms that are alike, when
// treatment has share of the units and s are units of such an arm: sqrt(n Var(R) (1/(1-share) + 1/share)), the
// sigma of the planning functions. NaN without variation to go by or with a share outside (0,1).
func SigmaFromBaseline(s RatioSums, share float64) float64 {
	if !(share > 0 && share < 1) {
		return math.NaN()
	}
	return math.Sqrt(float64(s.N) * s.RateVariance() * (1/(1-share) + 1/share))
}
