package stats

import (
	"errors"
	"fmt"
	"math"

	"gonum.org/v1/gonum/mathext"
	"gonum.org/v1/gonum/stat/distuv"
)

// ErrShares is returned for planned shares or counts that make no multinomial.
var ErrShares = errors.New("sample ratio: shares must be positive and add up to 1, counts must not be negative")

// mostCounted bounds units and the prior's weight: beyond it the gamma functions have no digits left.
const mostCounted = 1e12

// SampleRatio is the logarithm of the Bayes factor against the planned shares of the arms, for counts of
// units that came one by one ([LM] eq. 7): multinomial with a Dirichlet prior alpha_k = prior x share_k,
//
//	ln BF = lnG(sum alpha) - lnG(sum alpha + n) + sum_k [lnG(alpha_k + n_k) - lnG(alpha_k)] - sum_k n_k ln share_k
//
// BF is 1 before the first unit and an e-process under the planned shares: BF >= 1/alpha is an alarm of
// error alpha however often one looks; P of it is min(1, 1/BF).
//
// When a ramp changes the shares, see [SampleRatioRamp].
func SampleRatio(counts []int64, shares []float64, prior float64) (float64, error) {
	if len(counts) != len(shares) || len(counts) < 2 {
		return 0, fmt.Errorf("%w: %d counts and %d shares", ErrShares, len(counts), len(shares))
	}
	if !(prior > 0 && prior <= mostCounted) {
		return 0, fmt.Errorf("%w: prior %g must be positive, at most %g", ErrShares, prior, float64(mostCounted))
	}
	sum, n, ln := 0.0, 0.0, 0.0
	for k, c := range counts {
		if c < 0 || !(shares[k] > 0) {
			return 0, fmt.Errorf("%w: arm %d has count %d and share %g", ErrShares, k, c, shares[k])
		}
		sum += shares[k]
		n += float64(c)
		ln += lnGamma(prior*shares[k]+float64(c)) - lnGamma(prior*shares[k]) - float64(c)*math.Log(shares[k])
	}
	if math.Abs(sum-1) > 1e-6 {
		return 0, fmt.Errorf("%w: they add up to %g", ErrShares, sum)
	}
	if n > mostCounted {
		return 0, fmt.Errorf("%w: %g units are more than the factor has digits for (%g)", ErrShares, n, float64(mostCounted))
	}
	return ln + lnGamma(prior*sum) - lnGamma(prior*sum+n), nil
}

// SharePhase is a stretch of a test with the same planned shares: a step of a ramp.
type SharePhase struct {
	Counts []int64   // units that came, by arm
	Shares []float64 // planned for them; they add up to 1
}

// RampMismatch is the sample-ratio test over the phases of a ramp.
type RampMismatch struct {
	LogE []float64 // of each phase on its own
	// PNew is for counts of units at their first exposure: no unit is in two phases, so the phases are draws one
	// after another, their factors multiply, and a drift that is small in each adds up.
	PNew float64
	// PAny is for counts in which a unit may come again: the least p of a phase times the number of planned phases
	// (a union bound, which holds under any dependence).
	PAny float64
}

// SampleRatioRamp tests every phase of a ramp against its own shares, beginning anew where the shares change: one
// count over all of them against any single plan would find a mismatch in a sound ramp. planned is the number of
// phases that the ramp may have in all, those that have not begun included; with fewer than there are, these count.
func SampleRatioRamp(phases []SharePhase, planned int, prior float64) (RampMismatch, error) {
	if len(phases) == 0 {
		return RampMismatch{}, fmt.Errorf("%w: no phases", ErrShares)
	}
	out := RampMismatch{PNew: 1, PAny: 1}
	sum := 0.0
	for i, p := range phases {
		ln, err := SampleRatio(p.Counts, p.Shares, prior)
		if err != nil {
			return RampMismatch{}, fmt.Errorf("phase %d: %w", i+1, err)
		}
		out.LogE = append(out.LogE, ln)
		sum += ln
		out.PAny = min(out.PAny, float64(max(planned, len(phases)))*PFromLogE(ln))
	}
	out.PNew = PFromLogE(sum)
	return out, nil
}

// UnitsToAlarm is the number of units after which a split by actual shares, planned as shares, raises the alarm of
// error alpha: where [SampleRatio] of the expected counts reaches ln(1/alpha). Of real tests about half have raised it
// by then. +Inf where the shares are as planned.
func UnitsToAlarm(actual, shares []float64, alpha, prior float64) (float64, error) {
	if _, err := SampleRatio(make([]int64, len(actual)), shares, prior); err != nil {
		return 0, err
	}
	sum := 0.0
	for _, a := range actual {
		if !(a >= 0) {
			return 0, fmt.Errorf("%w: actual share %g", ErrShares, a)
		}
		sum += a
	}
	if math.Abs(sum-1) > 1e-6 || !(alpha > 0 && alpha < 1) {
		return 0, fmt.Errorf("%w: actual shares add up to %g, alpha is %g", ErrShares, sum, alpha)
	}
	missing := func(n float64) float64 {
		ln := lnGamma(prior) - lnGamma(prior+n)
		for k, a := range actual {
			ln += lnGamma(prior*shares[k]+n*a) - lnGamma(prior*shares[k]) - n*a*math.Log(shares[k])
		}
		return -math.Log(alpha) - ln
	}
	// The factor falls before it rises: look for the first doubling that alarms, then inside it.
	for hi := 1.0; hi < mostCounted; hi *= 2 {
		if missing(hi) <= 0 {
			lo := hi / 2
			for range 60 {
				if mid := (lo + hi) / 2; missing(mid) > 0 {
					lo = mid
				} else {
					hi = mid
				}
			}
			return hi, nil
		}
	}
	return math.Inf(1), nil
}

func lnGamma(x float64) float64 {
	v, _ := math.Lgamma(x)
	return v
}

// PFromLogE is the always-valid p-value of an e-value given by its logarithm.
func PFromLogE(logE float64) float64 { return math.Min(1, math.Exp(-logE)) }

// RateExceeds is the logarithm of an e-value against "events happen with probability at most limit", for
// x events out of n: the likelihood ratio to limit, mixed uniformly over the rates above it,
//
//	E = B(x+1, n-x+1) (1 - I_limit(x+1, n-x+1)) / ((1-limit) limit^x (1-limit)^(n-x))
//
// Each ratio is a supermartingale for any rate up to limit, so E >= 1/alpha is an alarm of error alpha at
// every look (the method of mixtures, [LM] section 2, restricted to one side).
func RateExceeds(x, n int64, limit float64) float64 {
	if n <= 0 || x < 0 || x > n || limit <= 0 || limit >= 1 {
		return 0
	}
	a, b := float64(x)+1, float64(n-x)+1
	tail := mathext.RegIncBeta(b, a, 1-limit) // 1 - I_limit(a, b)
	if tail == 0 {
		return math.Inf(-1)
	}
	return mathext.Lbeta(a, b) + math.Log(tail) - math.Log1p(-limit) - float64(x)*math.Log(limit) - float64(n-x)*math.Log1p(-limit)
}

// Wilson is Wilson's score interval (JASA 22, 1927) of x events out of n at confidence 1-alpha. It is for
// one look at independent events: for show beside a count, never for a decision.
func Wilson(x, n int64, alpha float64) Interval {
	if n <= 0 {
		return Interval{0, 1}
	}
	z := distuv.UnitNormal.Quantile(1 - alpha/2)
	p, nn := float64(x)/float64(n), float64(n)
	mid := (p + z*z/(2*nn)) / (1 + z*z/nn)
	half := z / (1 + z*z/nn) * math.Sqrt(p*(1-p)/nn+z*z/(4*nn*nn))
	return Interval{max(0, mid-half), min(1, mid+half)}
}
