// Package stats is the arithmetic of ctrloop's claims: click-through rates as ratio metrics over units,
// confidence sequences that may be looked at as often as one likes, adjustment by what was known before the test,
// many lifts at once, the sequential sample-ratio test, the planning figures that go with them, propensities of
// Thompson sampling, and off-policy estimators. docs/statistics.md says of each what it assumes, when it is the
// wrong tool, and how it was checked.
//
// Everything here is a pure function of sums that merge by addition, so that a stream, a warehouse view
// and a file give the same answer. Rates are fractions of 1, not per cent; n counts units (users, products).
//
// Sources, cited at each function:
//   - [WS] Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas: Time-uniform central limit theory and asymptotic
//     confidence sequences, arXiv 2103.06476.
//   - [LM] Lindon, Malek: Anytime-valid inference for multinomial count data, arXiv 2011.03567.
//   - [OBP] Saito, Aihara, Matsutani, Narita: Open Bandit Dataset and Pipeline, arXiv 2008.07146.
//   - [F] Fieller: Some problems in interval estimation, JRSS B 16 (1954).
//   - [DXKW] Deng, Xu, Kohavi, Walker: Improving the sensitivity of online controlled experiments by utilizing
//     pre-experiment data (CUPED), WSDM 2013.
//   - [DKL] Deng, Knoblich, Lu: Applying the delta method in metric analytics, arXiv 1803.06336.
//   - [WR] Wang, Ramdas: False discovery rate control with e-values, arXiv 2009.02824.
//   - [XWR] Xu, Wang, Ramdas: Post-selection inference for e-value based confidence intervals, arXiv 2203.12572.
//   - [WSR] Waudby-Smith, Ramdas: Estimating means of bounded random variables by betting, arXiv 2010.09686.
//   - [RKKOW] Russo, Van Roy, Kazerouni, Osband, Wen: A tutorial on Thompson sampling, arXiv 1707.02038.
package stats
