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

// SampleRatio is the logarithm of the Bayes factor against the planned shares of the arms, for counts of
// units that came one by one ([LM] eq. 7): multinomial with a Dirichlet prior alpha_k = prior x share_k,
//
//	ln BF = lnG(sum alpha) - lnG(sum alpha + n) + sum_k [lnG(alpha_k + n_k) - lnG(alpha_k)] - sum_k n_k ln share_k
//
// BF is 1 before the first unit and an e-process under the planned shares: BF >= 1/alpha is an alarm of
// error alpha however often one looks; P of it is min(1, 1/BF).
//
// When a ramp changes the shares, begin anew (each phase at alpha divided by the number of phases, valid
// even if the same units come back), or multiply the factors of the phases (add the logarithms; stronger,
// but only for phases whose units are not the same people).
func SampleRatio(counts []int64, shares []float64, prior float64) (float64, error) {
	if len(counts) != len(shares) || len(counts) < 2 {
		return 0, fmt.Errorf("%w: %d counts and %d shares", ErrShares, len(counts), len(shares))
	}
	if !(prior > 0) || math.IsInf(prior, 0) {
		return 0, fmt.Errorf("%w: prior %g must be positive", ErrShares, prior)
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
	return ln + lnGamma(prior*sum) - lnGamma(prior*sum+n), nil
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
