package stats

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// Posterior is a Beta distribution over one creative's click rate: Beta(A, B), that is A-1 clicks and B-1 other
// impressions above a uniform prior.
type Posterior struct{ A, B float64 }

// Bounds of ThompsonPropensities.
const (
	// minPosterior and maxPosterior bound A and B. Inside them the quadrature was checked.
	minPosterior, maxPosterior = 1e-3, 1e9
	// maxArms bounds the work, which grows with the square of the arms.
	maxArms = 200
	// propensityTolerance is the error allowed in the sum of the propensities before they are normalised.
	propensityTolerance = 1e-9
)

// ErrPosterior is returned for posteriors that no propensities can be computed from.
var ErrPosterior = errors.New("thompson propensities")

// ThompsonPropensities are the probabilities with which Beta-Bernoulli Thompson sampling picks each arm, the arm
// with the largest of independent draws ([RKKOW] section 3):
//
//	pi_a = integral over x of f_a(x) prod_{b != a} F_b(x) dx
//
// by quadrature, good to 1e-9; they add up to 1. The integral is taken over the logit of x, where the densities
// have no poles at the ends. It needs no incomplete beta function, which is slow and loses digits at large counts
// (gonum and scipy differ by 4e-10 at a million): every F is the running integral of its f, on panels that are
// halved until polynomials of degree 8 and 16 agree on each.
//
// Nothing in the loop calls it yet: decisions are uniform within a version. A policy that draws by posteriors needs it for the
// propensity that it logs, since sampling it would cost more and be less exact.
func ThompsonPropensities(arms []Posterior) ([]float64, error) {
	if len(arms) == 0 || len(arms) > maxArms {
		return nil, fmt.Errorf("%w: %d arms, want 1 to %d", ErrPosterior, len(arms), maxArms)
	}
	for i, p := range arms {
		if !(min(p.A, p.B) >= minPosterior && max(p.A, p.B) <= maxPosterior) {
			return nil, fmt.Errorf("%w: arm %d has Beta(%g, %g), want both in [%g, %g]", ErrPosterior, i+1, p.A, p.B, minPosterior, maxPosterior)
		}
	}
	out := integrateArms(arms)
	sum := 0.0
	for _, v := range out {
		sum += v
	}
	if !(math.Abs(sum-1) <= propensityTolerance) {
		return nil, fmt.Errorf("%w: the quadrature adds up to %.12g instead of 1 for %v (a bug)", ErrPosterior, sum, arms)
	}
	for i := range out {
		out[i] /= sum
	}
	return out, nil
}

// logit is the law of ln(x/(1-x)) under a Beta distribution, written around the logit of its mean: with
// delta = t - ln(A/B) and mu = A/(A+B), the density is
//
//	exp(A delta - (A+B) ln(1 + mu (e^delta - 1)) + norm)
//
// whose exponent is at most norm and cancels nothing, however large A and B are.
type logit struct{ a, b, mean, norm float64 }

func newLogit(p Posterior) logit {
	return logit{
		a: p.A, b: p.B, mean: math.Log(p.A / p.B),
		norm: 0.5*(math.Log(p.A)+math.Log(p.B)-math.Log(p.A+p.B)-math.Log(2*math.Pi)) - stirling(p.A) - stirling(p.B) + stirling(p.A+p.B),
	}
}

// stirling is ln Gamma(z) less its leading terms (z-1/2) ln z - z + ln(2 pi)/2: by the series where z is large and
// the difference would cancel.
func stirling(z float64) float64 {
	if z < 10 {
		return lnGamma(z) - ((z-0.5)*math.Log(z) - z + 0.5*math.Log(2*math.Pi))
	}
	r := 1 / (z * z)
	return (1./12 - r*(1./360-r*(1./1260-r*(1./1680-r*(1./1188-r*691./360360))))) / z
}

// exponent is ln density - norm: 0 at the mean, falling to both sides.
func (l logit) exponent(delta float64) float64 {
	a, n := l.a, l.a+l.b
	if l.a > l.b { // from the rarer side: near mu = 1 the two terms would cancel
		a, delta = l.b, -delta
	}
	if delta > 30 { // e^delta taken out, or it would overflow
		return a*delta - n*(delta+math.Log(a/n+(1-a/n)*math.Exp(-delta)))
	}
	return a*delta - n*math.Log1p(a/n*math.Expm1(delta))
}

func (l logit) density(t float64) float64 { return math.Exp(l.exponent(t-l.mean) + l.norm) }

// reach is how far from the mean, in one direction, mass is left: beyond it the density is below e^-45 of its top.
func (l logit) reach(sign float64) float64 {
	step := 1e-6
	for l.exponent(sign*step) > -45 {
		step *= 1.5
	}
	return l.mean + sign*step
}

// panelDegree is the degree of the polynomial through the Chebyshev points of a panel.
const panelDegree = 16

// clenshaw are the nodes cos(pi j/n) on [-1,1] from right to left, and for each the weights of the integral from -1
// to it (Clenshaw, Curtis: A method for numerical integration on an automatic computer, 1960). The first row is the
// integral over the whole panel.
type clenshaw struct {
	nodes   [panelDegree + 1]float64
	weights [panelDegree + 1][panelDegree + 1]float64
}

func newClenshaw(n int) (c clenshaw) {
	cosine := func(j, k int) float64 { return math.Cos(math.Pi * float64(j*k%(2*n)) / float64(n)) }
	// Integral of the Chebyshev polynomial of degree k from -1 to the node i.
	integral := func(i, k int) float64 {
		x := cosine(i, 1)
		switch k {
		case 0:
			return x + 1
		case 1:
			return (x*x - 1) / 2
		}
		sign := float64(1 - 2*((k+1)%2))
		return (cosine(i, k+1)-sign)/float64(2*(k+1)) - (cosine(i, k-1)-sign)/float64(2*(k-1))
	}
	for i := 0; i <= n; i++ {
		c.nodes[i] = cosine(i, 1)
		for j := 0; j <= n; j++ {
			for k := 0; k <= n; k++ {
				w := 2 / float64(n) * cosine(j, k) * integral(i, k)
				if k == 0 || k == n {
					w /= 2
				}
				if j == 0 || j == n {
					w /= 2
				}
				c.weights[i][j] += w
			}
		}
	}
	return c
}

var panelRule, panelCheck = newClenshaw(panelDegree), newClenshaw(panelDegree / 2)

// integrateArms does all arms at once, from left to right: at a node each F_b is needed by every arm but b.
func integrateArms(posteriors []Posterior) []float64 {
	arms := make([]logit, len(posteriors))
	var cuts []float64
	for i, p := range posteriors {
		arms[i] = newLogit(p)
		cuts = append(cuts, arms[i].reach(-1), arms[i].mean, arms[i].reach(1))
	}
	slices.Sort(cuts)
	const (
		tolerance = 1e-11 // between the degrees: the higher one is then far better
		maxDepth  = 40
	)
	total := make([]float64, len(arms))
	below := make([]float64, len(arms)) // F of each arm at the left end
	f := make([][panelDegree + 1]float64, len(arms))
	cdf := make([][panelDegree + 1]float64, len(arms))
	before := make([][panelDegree + 1]float64, len(arms)) // product of the F of arms in front
	part, whole := make([]float64, len(arms)), make([]float64, len(arms))
	var panel func(lo, hi float64, depth int)
	panel = func(lo, hi float64, depth int) {
		mid, half := (lo+hi)/2, (hi-lo)/2
		worst := 0.0
		// sum is the integral of values over the panel; what the lower degree makes of them tells the error.
		sum := func(values *[panelDegree + 1]float64) (v float64) {
			coarse := 0.0
			for j, x := range values {
				v += panelRule.weights[0][j] * x
				if j%2 == 0 {
					coarse += panelCheck.weights[0][j/2] * x
				}
			}
			worst = max(worst, half*math.Abs(v-coarse))
			return half * v
		}
		for a, arm := range arms {
			for j, x := range panelRule.nodes {
				f[a][j] = arm.density(mid + half*x)
			}
			whole[a] = sum(&f[a])
			for i := range cdf[a] {
				v := 0.0
				for j, w := range panelRule.weights[i] {
					v += w * f[a][j]
				}
				cdf[a][i] = min(1, max(0, below[a]+half*v))
			}
		}
		var product [panelDegree + 1]float64
		for j := range product {
			product[j] = 1
		}
		for a := range arms {
			before[a] = product
			for j := range product {
				product[j] *= cdf[a][j]
			}
		}
		for j := range product { // now of those behind
			product[j] = 1
		}
		for a := len(arms) - 1; a >= 0; a-- {
			var integrand [panelDegree + 1]float64
			for j := range product {
				integrand[j] = f[a][j] * before[a][j] * product[j]
				product[j] *= cdf[a][j]
			}
			part[a] = sum(&integrand)
		}
		if worst > tolerance && depth < maxDepth {
			panel(lo, mid, depth+1)
			panel(mid, hi, depth+1)
			return
		}
		for a := range arms {
			total[a] += part[a]
			below[a] += whole[a]
		}
	}
	for i := 1; i < len(cuts); i++ {
		if cuts[i] > cuts[i-1] {
			panel(cuts[i-1], cuts[i], 0)
		}
	}
	return total
}
