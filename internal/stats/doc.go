// Package stats is the arithmetic of ctrloop's claims: click-through rates as ratio metrics over units,
// confidence sequences that may be looked at as often as one likes, the sequential sample-ratio test, the
// planning figures that go with them, and off-policy estimators.
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
package stats
