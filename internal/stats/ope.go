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
	// Pull is by how much the direct method's value moves with this row's reward, times the number of rows, where the reward
	// model was fitted to this log; 0 takes the model as given.
	Pull float64
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
	SE    float64 `json:"se"` // of the value about its own mean, which for a cut estimator is not the policy's value
}

// Evaluation is what a log says of a policy.
type Evaluation struct {
	Estimates map[Estimator]Estimate
	ESS       float64 // effective sample size (sum w)^2 / sum w^2
	// MeanWeight is about 1 where the logged propensities are those of the log and every action of the evaluated policy can
	// be in it.
	MeanWeight, MeanWeightSE float64
}

// Warnings say what makes the figures doubtful, in words; none: nothing that the weights show.
func (e Evaluation) Warnings() []string {
	var out []string
	if off := math.Abs(e.MeanWeight - 1); off > 0.02 && off > 4*e.MeanWeightSE {
		out = append(out, fmt.Sprintf("the mean importance weight is %.4g, where 1 is expected (standard error %.2g): the logged "+
			"propensities are not the probabilities with which this log was made, or the policy takes actions that the log never takes",
			e.MeanWeight, e.MeanWeightSE))
	}
	if e.ESS < leastESS {
		out = append(out, fmt.Sprintf("the effective sample size is %.4g: the policies differ too much for these figures to be trusted", e.ESS))
	}
	return out
}

// leastESS is the effective sample size below which normal intervals say little.
const leastESS = 100

// Validate returns what is wrong with the parameters.
func (p OPEParams) Validate() error {
	for _, v := range []struct {
		name string
		x    float64
		ok   bool
		want string
	}{
		{"alpha", p.Alpha, p.Alpha > 0 && p.Alpha < 1, "between 0 and 1"}, {"sg", p.SG, p.SG >= 0 && p.SG <= 1, "0 to 1"},
		{"shrink", p.Shrink, p.Shrink > 0 && p.Shrink <= mostParameter, "more than 0, at most 1e12"},
		{"clip", p.Clip, p.Clip > 0 && p.Clip <= mostParameter, "more than 0, at most 1e12"},
		{"switch", p.Switch, p.Switch >= 0 && p.Switch <= mostParameter, "0 to 1e12"},
	} {
		if !v.ok {
			return fmt.Errorf("%w: %s %g: want %s", ErrOPE, v.name, v.x, v.want)
		}
	}
	return nil
}

// mostParameter keeps parameters where the arithmetic has digits left.
const mostParameter = 1e12

// ErrOPE is returned for a log that no estimate can be made from.
var ErrOPE = errors.New("off-policy evaluation")

// EvaluatePolicy gives the value of the evaluated policy by every estimator, as the Open Bandit Pipeline
// 0.5.7 defines them ([OBP] section 4 and its estimators.py).
//
// Intervals are normal ones for a single look, from each estimator's influence terms (linearised for the
// self-normalised ones; that of DM has the noise of a model that was fitted to this log, by Pull, and not how wrong its
// form may be). Where weights are cut the estimate is about another value than the policy's: the intervals of
// clipped IPS and SGIPS are widened to hold that of IPS, those of Switch-DR and DRos to hold that of DR. With a
// small effective sample size all of them are too narrow.
func EvaluatePolicy(log []OPESample, p OPEParams) (Evaluation, error) {
	if err := p.Validate(); err != nil {
		return Evaluation{}, err
	}
	if len(log) < 2 {
		return Evaluation{}, fmt.Errorf("%w: %d rows, at least 2 are needed", ErrOPE, len(log))
	}
	n, sw, sw2, swr, swe := float64(len(log)), 0.0, 0.0, 0.0, 0.0
	for i, s := range log {
		if bad(s.Reward) || bad(s.Weight) || bad(s.Q) || bad(s.QPolicy) || s.Weight < 0 {
			return Evaluation{}, fmt.Errorf("%w: row %d is not usable: %+v", ErrOPE, i+1, s)
		}
		sw += s.Weight
		sw2 += s.Weight * s.Weight
		swr += s.Weight * s.Reward
		swe += s.Weight * (s.Reward - s.Q)
	}
	if sw == 0 {
		return Evaluation{}, fmt.Errorf("%w: the evaluated policy never takes a logged action (all weights are 0)", ErrOPE)
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
			if name == DM {
				d += s.Pull * (s.Reward - s.Q)
			}
			ss += d * d
		}
		se := math.Sqrt(ss / (n - 1) / n)
		out[name] = Estimate{mean, mean - z*se, mean + z*se, se}
	}
	for cut, whole := range map[Estimator]Estimator{ClippedIPS: IPS, SGIPS: IPS, SwitchDR: DR, DRos: DR} {
		e := out[cut]
		e.Low, e.High = min(e.Low, out[whole].Low), max(e.High, out[whole].High)
		out[cut] = e
	}
	for name, e := range out {
		if bad(e.Value) || bad(e.SE) {
			return Evaluation{}, fmt.Errorf("%w: the figures of %s are not finite: the weights reach beyond what can be added up", ErrOPE, name)
		}
	}
	return Evaluation{out, sw * sw / sw2, wbar, math.Sqrt(max(0, sw2/n-wbar*wbar) / (n - 1))}, nil
}

func bad(x float64) bool { return math.IsNaN(x) || math.IsInf(x, 0) }
