package stats

import (
	"errors"
	"fmt"
	"math"
)

// Sequence is an asymptotic confidence sequence: an interval that holds at every sample size at once with
// probability 1 - Alpha, so that a look costs nothing ([WS], Theorem 2.2 and eq. 9). The bet is that data
// grow by units that are alike; NStar says where the interval is tightest.
type Sequence struct {
	Alpha float64 // two-sided error over all looks, (0,1)
	NStar float64 // units at which the interval is tightest, > 0
}

// DefaultSequence is what every command uses unless told otherwise.
func DefaultSequence() Sequence { return Sequence{Alpha: 0.05, NStar: 5000} }

// ErrSequence is returned for parameters outside their range.
var ErrSequence = errors.New("confidence sequence: alpha must lie in (0,1) and nstar must be positive, at most 1e15")

// mostNStar is more units than anything will ever count.
const mostNStar = 1e15

// Validate checks the parameters.
func (q Sequence) Validate() error {
	if !(q.Alpha > 0 && q.Alpha < 1) || !(q.NStar > 0 && q.NStar <= mostNStar) {
		return fmt.Errorf("%w: alpha %g, nstar %g", ErrSequence, q.Alpha, q.NStar)
	}
	return nil
}

// rho2 is rho^2 of [WS] eq. 161: the mixture variance that makes the interval tightest at nstar units.
func rho2(alpha, nstar float64) float64 {
	l := -2 * math.Log(alpha)
	return (l + math.Log(l+1)) / nstar
}

// z is the half-width in standard errors after n units. With sigma^2 = n SE^2, [WS] eq. 9
//
//	half = sigma sqrt(2 (n rho^2 + 1) / (n^2 rho^2) ln(sqrt(n rho^2 + 1) / alpha))
//
// is SE times a factor that depends on n alone.
func (q Sequence) z(n float64) float64 { return q.zAt(n, q.Alpha) }

// zAt is z at another error, with rho as it is: the intervals of one and the same e-process at several levels.
func (q Sequence) zAt(n, alpha float64) float64 {
	if n <= 0 {
		return math.Inf(1)
	}
	x := n * rho2(q.Alpha, q.NStar)
	return math.Sqrt(2 * (x + 1) / x * (0.5*math.Log1p(x) - math.Log(alpha)))
}

// zOneSided is the same for a bound on one side ([WS] eq. 134, with rho at 2 alpha):
//
//	half = sigma sqrt(2 (n rho^2 + 1) / (n^2 rho^2) ln(1 + sqrt(n rho^2 + 1) / (2 alpha)))
func (q Sequence) zOneSided(n float64) float64 {
	if n <= 0 {
		return math.Inf(1)
	}
	x := n * rho2(min(2*q.Alpha, 0.999), q.NStar)
	return math.Sqrt(2 * (x + 1) / x * math.Log1p(math.Sqrt(x+1)/(2*q.Alpha)))
}

// HalfWidth of the two-sided interval for an estimate with standard error se after n units ([WS] eq. 9).
func (q Sequence) HalfWidth(n, se float64) float64 { return se * q.z(n) }

// HalfWidthOneSided is the distance of a one-sided bound of error Alpha from the estimate ([WS] eq. 134).
func (q Sequence) HalfWidthOneSided(n, se float64) float64 { return se * q.zOneSided(n) }

// LogE is the logarithm of the e-value against "the true difference is null" ([WS] eq. 155):
// E_n = exp(rho^2 S / (2 (n rho^2 + 1))) / sqrt(n rho^2 + 1) with S = n (diff - null)^2 / SE^2.
// The interval excludes null exactly when E_n > 1/Alpha.
func (q Sequence) LogE(n, diff, null, se float64) float64 {
	if n <= 0 || !(se > 0) {
		return 0
	}
	r2 := rho2(q.Alpha, q.NStar)
	d := (diff - null) / se
	return r2*n*d*d/(2*(n*r2+1)) - 0.5*math.Log1p(n*r2)
}

// P is the always-valid p-value min(1, 1/E_n): the probability of ever seeing one this small without a
// true difference is at most this small.
func (q Sequence) P(n, diff, null, se float64) float64 {
	return math.Min(1, math.Exp(-q.LogE(n, diff, null, se)))
}

// POneSided is the always-valid p-value of "the true difference is null or less" after n units: the least error at
// which the lower bound of [WS] eq. 134, with rho as Alpha sets it, lies above null. At p = Alpha that is the bound
// of [Sequence.HalfWidthOneSided]. For "null or more" give the negated difference and null.
func (q Sequence) POneSided(n, diff, null, se float64) float64 {
	d := (diff - null) / se
	if n <= 0 || !(se > 0) || !(d > 0) {
		return 1
	}
	x := n * rho2(min(2*q.Alpha, 0.999), q.NStar)
	return math.Min(1, math.Sqrt(x+1)/2/math.Expm1(d*d*x/(2*(x+1))))
}
