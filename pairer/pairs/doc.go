// Package pairs turns click evidence on creatives into preference pairs. It is pure: evidence in, pairs out.
//
// Evidence is a count of impressions and clicks per cell (product, placement) and creative over one span of
// event time. Creatives are compared within a cell only, because placements have click rates of their own.
// The click rate of a creative has a Beta posterior under a prior fitted to all evidence; a pair's weight is
// 2 P(p_chosen > p_rejected) - 1 under the posteriors, so that noise is not mistaken for preference and no
// gap is too large to learn from. CAIG's own rule (at least 1,000 impressions, ratio between 1.05 and 1.20,
// from its published pre-processing) is the alternative policy.
package pairs
