package stats

import "fmt"

// AdjustedLift is a lift with the noise taken out that was there before the test.
type AdjustedLift struct {
	Lift
	Theta     float64 // coefficient of the covariate; 0 where there is none to use
	Reduction float64 // share of the variance of Absolute that the covariate took away; below 0 where it added some
	// Refused says why the covariate was not used although both arms have one; empty: it was, or there is none.
	Refused string
}

const (
	// tooGood is the squared correlation with the outcome at which a covariate is taken for the outcome itself, or
	// for something made from it: no behaviour before a test says that much of the behaviour in it.
	tooGood = 0.99
	// covariateAlpha is the error, over all looks, of the check that both arms had the same rate before the test.
	covariateAlpha = 0.01
)

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
// Of the smaller arm the variance is at least what it would be with the spread of the larger arm's adjusted units, as
// in [Compare].
//
// Without impressions before the test in either arm, or without variation of R', theta is 0 and the answer
// [Compare]'s. The same, with the reason in Refused, where the covariate cannot be one: it says what the outcome says
// (a squared correlation of 0.99 or more), or the arms differed in it before anything was treated.
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
	if control.PreD == 0 || treatment.PreD == 0 || plain.Unknown != "" || !(variance > 0) {
		return out, nil
	}
	theta := all.RateCovariance() / variance
	if out.Refused = refuseCovariate(control, treatment, theta, q); out.Refused != "" {
		return out, nil
	}
	x := adjustedContrast(control, treatment, theta)
	x.borrow(control, treatment, theta)
	out.Lift = x.lift(plain.Units, q, "")
	out.Theta = theta
	out.Reduction = 1 - out.SE*out.SE/(plain.SE*plain.SE)
	return out, nil
}

// adjustedContrast is the contrast with the covariate's coefficient theta, each arm with its own variance.
func adjustedContrast(control, treatment Sums, theta float64) contrast {
	wB := treatment.PreD / (control.PreD + treatment.PreD)
	wA := 1 - wB
	moved := treatment.Pre().Rate() - control.Pre().Rate()
	va, vb := control.RateVariance(), treatment.RateVariance()
	ca, cb := control.RateCovariance(), treatment.RateCovariance()
	pre := control.Pre().RateVariance() + treatment.Pre().RateVariance()
	// With k = wA + wB r: Var(R_B - theta k R'_B) + Var(r R_A - theta k R'_A), ordered by powers of r.
	return contrast{
		d0: treatment.Rate() - theta*wA*moved,
		d1: control.Rate() + theta*wB*moved,
		v0: vb - 2*theta*wA*cb + theta*theta*wA*wA*pre,
		v1: -2*theta*(wB*cb+wA*ca) + 2*theta*theta*wA*wB*pre,
		v2: va - 2*theta*wB*ca + theta*theta*wB*wB*pre,
	}
}

// borrow raises the adjusted variance of the smaller arm to what it would be with the spread of the larger arm's units.
func (x *contrast) borrow(control, treatment Sums, theta float64) {
	adjusted := func(s Sums) float64 {
		return max(0, s.RateVariance()-2*theta*s.RateCovariance()+theta*theta*s.Pre().RateVariance())
	}
	va, vb := adjusted(control), adjusted(treatment)
	if k := times(control.RatioSums, treatment.RatioSums); k >= 1 {
		x.v0 += max(0, k*va-vb)
	} else {
		x.v2 += max(0, times(treatment.RatioSums, control.RatioSums)*vb-va)
	}
}

// refuseCovariate says why the covariate must not be used; empty: it may.
func refuseCovariate(control, treatment Sums, theta float64, q Sequence) string {
	all := control.Add(treatment)
	if v := all.RateVariance(); v > 0 {
		if r2 := theta * theta * all.Pre().RateVariance() / v; r2 >= tooGood {
			return fmt.Sprintf("what the units did before the test says what they did in it (squared correlation %.4g): "+
				"this is the outcome, not something measured before the first exposure", r2)
		}
	}
	a, b := control.Pre(), treatment.Pre()
	if a.M > a.D || b.M > b.D || TooFew(a, b) != "" { // no click-through rate, or too little to see a difference
		return ""
	}
	q.Alpha = covariateAlpha
	if before, err := Compare(a, b, q); err == nil && before.P <= covariateAlpha {
		return fmt.Sprintf("the arms differed before the test: %.4g %% against %.4g %% of the control (always-valid p %.2g), "+
			"so the units were not drawn at random or the covariate was touched by the test", 100*b.Rate(), 100*a.Rate(), before.P)
	}
	return ""
}
