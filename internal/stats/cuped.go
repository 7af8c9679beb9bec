package stats

import "fmt"

// AdjustedLift is a lift with the noise taken out that was there before the test.
type AdjustedLift struct {
	Lift
	Theta     float64 // coefficient of the covariate; 0 where there is none to use
	Reduction float64 // share of the variance of Absolute that the covariate took away; below 0 where it added some
}

// CompareAdjusted is [Compare] with CUPED for a ratio metric ([DXKW], the control variate's optimal
// coefficient, with the delta method of [DKL] for both ratios): with the rates R of the test and R' of the time before it,
//
//	theta = Cov(R, R') / Var(R')   over the units of both arms together
//	R_k,adj = R_k - theta (R'_k - R')   with R' over both arms
//	SE^2 = sum_k [Var(R_k) - 2 theta Cov(R_k, R'_k) + theta^2 Var(R'_k)]
//
// Both arms had the same treatment before the test, so R'_B - R'_A has mean zero and the adjusted difference
// means what the plain one does; only its variance is smaller. That fails where the covariate was touched by the
// test: it must be measured before the unit's first exposure.
//
// The relative interval is Fieller's for R_B,adj - r R_A,adj. R' moves with both arms, and is not taken as known:
// with w the arms' shares of d', the contrast is R_B - r R_A - theta (w_A + w_B r)(R'_B - R'_A), so its variance
// is a quadratic in r too, and at r = 1 the interval is that of the absolute difference.
//
// Without impressions before the test in either arm, or without variation of R', theta is 0 and the answer
// [Compare]'s.
func CompareAdjusted(control, treatment Sums, q Sequence) (AdjustedLift, error) {
	plain, err := Compare(control.RatioSums, treatment.RatioSums, q)
	if err != nil {
		return AdjustedLift{}, err
	}
	if err := control.Validate(); err != nil {
		return AdjustedLift{}, fmt.Errorf("control before the test: %w", err)
	}
	if err := treatment.Validate(); err != nil {
		return AdjustedLift{}, fmt.Errorf("treatment before the test: %w", err)
	}
	out := AdjustedLift{Lift: plain}
	all := control.Add(treatment)
	variance := all.Pre().RateVariance()
	if control.PreD == 0 || treatment.PreD == 0 || plain.Uninformative || !(variance > 0) {
		return out, nil
	}
	theta := all.RateCovariance() / variance
	wB := treatment.PreD / all.PreD
	wA := 1 - wB
	moved := treatment.Pre().Rate() - control.Pre().Rate()
	va, vb := control.RateVariance(), treatment.RateVariance()
	ca, cb := control.RateCovariance(), treatment.RateCovariance()
	pre := control.Pre().RateVariance() + treatment.Pre().RateVariance()
	// With k = wA + wB r: Var(R_B - theta k R'_B) + Var(r R_A - theta k R'_A), ordered by powers of r.
	x := contrast{
		d0: treatment.Rate() - theta*wA*moved,
		d1: control.Rate() + theta*wB*moved,
		v0: vb - 2*theta*wA*cb + theta*theta*wA*wA*pre,
		v1: -2*theta*(wB*cb+wA*ca) + 2*theta*theta*wA*wB*pre,
		v2: va - 2*theta*wB*ca + theta*theta*wB*wB*pre,
	}
	out.Lift = x.lift(plain.Units, q)
	out.Theta = theta
	out.Reduction = 1 - out.SE*out.SE/(plain.SE*plain.SE)
	return out, nil
}
