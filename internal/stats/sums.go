package stats

import (
	"fmt"
	"math"
)

// Sums is what is kept of one arm when a covariate from before the test goes with every unit: the count of
// units and 14 sums, the 4 first and the 10 second moments of (m, d, m', d'). m and d are the metric during the
// test as in [RatioSums], m' and d' the same unit's before it (0 and 0 for a unit that is new). Nothing else is
// needed for a lift, however many impressions there were: sums of disjoint sets of units merge by Add, exactly
// so where the values are counts (up to 2^53).
type Sums struct {
	RatioSums

	PreM  float64 `json:"pre_m"`   // sum of m'
	PreD  float64 `json:"pre_d"`   // sum of d'
	PreMM float64 `json:"pre_mm"`  // sum of m' squared
	PreDD float64 `json:"pre_dd"`  // sum of d' squared
	PreMD float64 `json:"pre_md"`  // sum of m' times d'
	MPreM float64 `json:"m_pre_m"` // sum of m times m'
	MPreD float64 `json:"m_pre_d"` // sum of m times d'
	DPreM float64 `json:"d_pre_m"` // sum of d times m'
	DPreD float64 `json:"d_pre_d"` // sum of d times d'
}

// Observe adds one unit: m of d during the test, preM of preD before it.
func (s *Sums) Observe(m, d, preM, preD float64) {
	s.RatioSums.Observe(m, d)
	s.PreM += preM
	s.PreD += preD
	s.PreMM += preM * preM
	s.PreDD += preD * preD
	s.PreMD += preM * preD
	s.MPreM += m * preM
	s.MPreD += m * preD
	s.DPreM += d * preM
	s.DPreD += d * preD
}

// Add merges the sums of other units.
func (s Sums) Add(o Sums) Sums {
	return Sums{
		RatioSums: s.RatioSums.Add(o.RatioSums),
		PreM:      s.PreM + o.PreM, PreD: s.PreD + o.PreD,
		PreMM: s.PreMM + o.PreMM, PreDD: s.PreDD + o.PreDD, PreMD: s.PreMD + o.PreMD,
		MPreM: s.MPreM + o.MPreM, MPreD: s.MPreD + o.MPreD,
		DPreM: s.DPreM + o.DPreM, DPreD: s.DPreD + o.DPreD,
	}
}

// Pre is the ratio metric before the test on its own.
func (s Sums) Pre() RatioSums {
	return RatioSums{N: s.N, M: s.PreM, D: s.PreD, MM: s.PreMM, DD: s.PreDD, MD: s.PreMD}
}

// RateCovariance is the covariance of the rate with the rate before the test, by the delta method on both
// ([DKL]): sum e e' / ((n-1) dbar d'bar n), with the residuals e = m - R d and e' = m' - R' d', whose
// sums are zero. Units: rate squared. NaN where one of the rates does not exist or with fewer than two units.
func (s Sums) RateCovariance() float64 {
	if s.N < 2 || s.D == 0 || s.PreD == 0 {
		return math.NaN()
	}
	r, p, n := s.Rate(), s.Pre().Rate(), float64(s.N)
	ee := s.MPreM - p*s.MPreD - r*s.DPreM + r*p*s.DPreD
	return ee / ((n - 1) * (s.D / n) * (s.PreD / n) * n)
}

// Covariance is the 4x4 sample covariance matrix (n-1) of (m, d, m', d'), from the sums; NaN below two units.
func (s Sums) Covariance() (c [4][4]float64) {
	n := float64(s.N)
	first := [4]float64{s.M, s.D, s.PreM, s.PreD}
	second := [4][4]float64{
		{s.MM, s.MD, s.MPreM, s.MPreD},
		{s.MD, s.DD, s.DPreM, s.DPreD},
		{s.MPreM, s.DPreM, s.PreMM, s.PreMD},
		{s.MPreD, s.DPreD, s.PreMD, s.PreDD},
	}
	for i := range c {
		for j := range c {
			c[i][j] = math.NaN()
			if s.N >= 2 {
				c[i][j] = (second[i][j] - first[i]*first[j]/n) / (n - 1)
			}
		}
	}
	return c
}

// Validate refuses sums that no set of units can have, as [RatioSums.Validate] does, and products across the two
// periods that break the Cauchy-Schwarz inequality. The covariate need not be of the same metric: m' may exceed d'.
func (s Sums) Validate() error {
	if err := s.RatioSums.Validate(); err != nil {
		return err
	}
	const slack = 1 + 1e-9 // rounding of sums
	for _, v := range []struct {
		name     string
		x, bound float64 // x squared is at most bound
	}{
		{"pre_m", s.PreM, s.PreMM * float64(s.N)}, {"pre_d", s.PreD, s.PreDD * float64(s.N)}, {"pre_md", s.PreMD, s.PreMM * s.PreDD},
		{"m_pre_m", s.MPreM, s.MM * s.PreMM}, {"m_pre_d", s.MPreD, s.MM * s.PreDD},
		{"d_pre_m", s.DPreM, s.DD * s.PreMM}, {"d_pre_d", s.DPreD, s.DD * s.PreDD},
	} {
		switch {
		case bad(v.x) || bad(v.bound):
			return fmt.Errorf("%w: %s = %g", ErrSums, v.name, v.x)
		case v.bound < 0 || v.x*v.x > v.bound*slack:
			return fmt.Errorf("%w: %s = %g is larger than its squares allow (Cauchy-Schwarz)", ErrSums, v.name, v.x)
		}
	}
	return nil
}
