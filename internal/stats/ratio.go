package stats

import (
	"errors"
	"fmt"
	"math"
)

// RatioSums are the sufficient sums of a ratio metric R = sum m / sum d over units, with m the clicked
// impressions and d the impressions of one unit. Sums of disjoint sets of units merge by Add. Counts are
// exact up to 2^53.
type RatioSums struct {
	N  int64   `json:"n"`  // units
	M  float64 `json:"m"`  // sum of m
	D  float64 `json:"d"`  // sum of d
	MM float64 `json:"mm"` // sum of m squared
	DD float64 `json:"dd"` // sum of d squared
	MD float64 `json:"md"` // sum of m times d
}

// Observe adds one unit with m clicked impressions out of d.
func (s *RatioSums) Observe(m, d float64) {
	s.N++
	s.M += m
	s.D += d
	s.MM += m * m
	s.DD += d * d
	s.MD += m * d
}

// Add merges the sums of other units.
func (s RatioSums) Add(o RatioSums) RatioSums {
	return RatioSums{s.N + o.N, s.M + o.M, s.D + o.D, s.MM + o.MM, s.DD + o.DD, s.MD + o.MD}
}

// Rate is sum m / sum d, and NaN without impressions.
func (s RatioSums) Rate() float64 {
	if s.D == 0 {
		return math.NaN()
	}
	return s.M / s.D
}

// RateVariance is the variance of Rate by the delta method,
// v/n with v = (s2_m - 2 R s_md + R^2 s2_d) / dbar^2 and sample (n-1) moments, in rate units squared.
// It is computed from the residuals e = m - R d, whose sum is zero by the definition of R, so that
// v = sum e^2 / ((n-1) dbar^2): the same number without the cancellation of the textbook form.
// NaN when there are fewer than two units or no impressions; exactly 0 where all units have the same rate.
func (s RatioSums) RateVariance() float64 {
	if s.N < 2 || s.D == 0 {
		return math.NaN()
	}
	n := float64(s.N)
	dbar := s.D / n
	return s.squaredResiduals() / ((n - 1) * dbar * dbar * n)
}

// ErrSums is returned for sums that no set of units can have.
var ErrSums = errors.New("impossible sums of a ratio metric")

// Validate refuses sums that no set of units can have: NaN, negative, or a mean square below the squared mean.
func (s RatioSums) Validate() error {
	for _, v := range []struct {
		name string
		x    float64
	}{{"m", s.M}, {"d", s.D}, {"mm", s.MM}, {"dd", s.DD}, {"md", s.MD}} {
		if math.IsNaN(v.x) || math.IsInf(v.x, 0) || v.x < 0 {
			return fmt.Errorf("%w: %s = %g", ErrSums, v.name, v.x)
		}
	}
	n := float64(s.N)
	const slack = 1 + 1e-9 // rounding of sums
	switch {
	case s.N < 0:
		return fmt.Errorf("%w: n = %d", ErrSums, s.N)
	case s.M > s.D*slack:
		return fmt.Errorf("%w: %g clicked impressions out of %g", ErrSums, s.M, s.D)
	case s.M*s.M > s.MM*n*slack, s.D*s.D > s.DD*n*slack:
		return fmt.Errorf("%w: squares are smaller than their mean allows (Cauchy-Schwarz)", ErrSums)
	}
	return nil
}
