package stats

import (
	"errors"
	"fmt"
	"math"

	"gonum.org/v1/gonum/stat/distuv"
)

// Estimator names an off-policy estimator. The list is closed.
type Estimator string

// Estimators, under the names that `ctrloop stats ope` prints.
const (
	IPS        Estimator = "ips"         // inverse propensity score
	ClippedIPS Estimator = "clipped_ips" // weights cut at a bound
	SNIPS      Estimator = "snips"       // self-normalised
	DM         Estimator = "dm"          // direct method: the reward model alone
	DR         Estimator = "dr"          // doubly robust
	SNDR       Estimator = "sndr"        // self-normalised doubly robust
	SwitchDR   Estimator = "switch_dr"   // doubly robust where the weight is small, direct elsewhere
	DRos       Estimator = "dros"        // doubly robust with optimistic shrinkage
	SGIPS      Estimator = "sg_ips"      // sub-Gaussian weights
)

// Estimators lists them in the order in which they are shown.
func Estimators() []Estimator {
	return []Estimator{IPS, ClippedIPS, SNIPS, DM, DR, SNDR, SwitchDR, DRos, SGIPS}
}

// OPESample is one logged decision as the estimators need it.
type OPESample struct {
	Reward  float64 // observed, 1 for a click
	Weight  float64 // pi_e(a|x) / pi_b(a|x), the logged propensity below
	Q       float64 // reward model for the action taken
	QPolicy float64 // reward model averaged over the evaluated policy's actions
}

// OPEParams are the tuning parameters of the estimators that have one.
type OPEParams struct {
	Clip   float64 // clipped IPS: largest weight
	Switch float64 // Switch-DR: largest weight at which the observed reward is used
	Shrink float64 // DRos: lambda of w lambda / (w^2 + lambda)
	SG     float64 // sub-Gaussian IPS: lambda of w / (1 - lambda + lambda w), [0,1]
	Alpha  float64 // 1 - confidence of the intervals
}

// DefaultOPEParams are the parameters of the reference values.
func DefaultOPEParams() OPEParams {
	return OPEParams{Clip: 5, Switch: 5, Shrink: 10, SG: 0.1, Alpha: 0.05}
}

// Estimate is a policy's value with its interval, in rewards a decision.
type Estimate struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// ErrOPE is returned for a log that no estimate can be made from.
var ErrOPE = errors.New("off-policy evaluation")

// EvaluatePolicy gives the value of the evaluated policy by every estimator, as the Open Bandit Pipeline
// 0.5.7 defines them ([OBP] section 4 and its estimators.py), and the effective sample size
// (sum w)^2 / sum w^2.
//
// Intervals are normal ones for a single look, from each estimator's influence terms (linearised for the
// self-normalised ones). They take the reward model as given: that of DM shows only how the contexts vary,
// not how wrong the model may be. With a small effective sample size the weighted ones are too narrow.
func EvaluatePolicy(log []OPESample, p OPEParams) (map[Estimator]Estimate, float64, error) {
	if len(log) < 2 {
		return nil, 0, fmt.Errorf("%w: %d rows, at least 2 are needed", ErrOPE, len(log))
	}
	n, sw, sw2, swr, swe := float64(len(log)), 0.0, 0.0, 0.0, 0.0
	for i, s := range log {
		if bad(s.Reward) || bad(s.Weight) || bad(s.Q) || bad(s.QPolicy) || s.Weight < 0 {
			return nil, 0, fmt.Errorf("%w: row %d is not usable: %+v", ErrOPE, i+1, s)
		}
		sw += s.Weight
		sw2 += s.Weight * s.Weight
		swr += s.Weight * s.Reward
		swe += s.Weight * (s.Reward - s.Q)
	}
	if sw == 0 {
		return nil, 0, fmt.Errorf("%w: the evaluated policy never takes a logged action (all weights are 0)", ErrOPE)
	}
	wbar, snips, corr := sw/n, swr/sw, swe/sw
	dr := func(s OPESample, w float64) float64 { return s.QPolicy + w*(s.Reward-s.Q) }
	// Each estimator is the mean of its terms; for a self-normalised one the terms are value + influence.
	terms := map[Estimator]func(OPESample) float64{
		IPS:        func(s OPESample) float64 { return s.Weight * s.Reward },
		ClippedIPS: func(s OPESample) float64 { return min(s.Weight, p.Clip) * s.Reward },
		SNIPS:      func(s OPESample) float64 { return snips + s.Weight*(s.Reward-snips)/wbar },
		DM:         func(s OPESample) float64 { return s.QPolicy },
		DR:         func(s OPESample) float64 { return dr(s, s.Weight) },
		SNDR:       func(s OPESample) float64 { return s.QPolicy + corr + s.Weight*(s.Reward-s.Q-corr)/wbar },
		SwitchDR: func(s OPESample) float64 {
			if s.Weight > p.Switch {
				return s.QPolicy
			}
			return dr(s, s.Weight)
		},
		DRos:  func(s OPESample) float64 { return dr(s, p.Shrink*s.Weight/(s.Weight*s.Weight+p.Shrink)) },
		SGIPS: func(s OPESample) float64 { return s.Weight / (1 - p.SG + p.SG*s.Weight) * s.Reward },
	}
	z := distuv.UnitNormal.Quantile(1 - p.Alpha/2)
	out := make(map[Estimator]Estimate, len(terms))
	for _, name := range Estimators() {
		sum := 0.0
		for _, s := range log {
			sum += terms[name](s)
		}
		mean, ss := sum/n, 0.0
		for _, s := range log {
			d := terms[name](s) - mean
			ss += d * d
		}
		half := z * math.Sqrt(ss/(n-1)/n)
		out[name] = Estimate{mean, mean - half, mean + half}
	}
	return out, sw * sw / sw2, nil
}

func bad(x float64) bool { return math.IsNaN(x) || math.IsInf(x, 0) }
