"""Pairs from impressions and clicks, by the rules of the pairer (Go, pairer/pairs), for data that comes from elsewhere.

Same prior, same posterior weight, same hard rule, same ids and sides, same hash for held-out products: a data set made
here and one made by the pairer from the same counts hold the same pairs.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator

import numpy as np

POSTERIOR, CAIG = "posterior", "caig"
POLICIES = (POSTERIOR, CAIG)
STRONGEST = 10_000.0  # prior strength where rates spread no more than binomial noise
TIE = 3e-4  # weight below which the order of a pair is noise of the quadrature
NODES = 96  # of the quadrature, over ten standard deviations to each side
# CAIG's published pre-processing: more impressions than this, and a ratio of click-through rates in this band.
CAIG_IMPRESSIONS, CAIG_BAND = 1000, (1.05, 1.20)
BATCH = 2000  # pairs weighed at once: 2,000 x 96 doubles


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What one creative earned."""

    product: str
    creative: str
    impressions: int
    clicks: int


@dataclasses.dataclass(frozen=True)
class Prior:
    """Beta prior of click-through rates."""

    alpha: float
    beta: float

    def posterior(self, e: Evidence) -> tuple[float, float]:
        """Beta parameters of a creative's rate."""
        return self.alpha + e.clicks, self.beta + e.impressions - e.clicks

    def mean(self, e: Evidence) -> float:
        """Posterior mean of a creative's rate."""
        a, b = self.posterior(e)
        return a / (a + b)


def fit_prior(impressions: np.ndarray, clicks: np.ndarray) -> Prior:
    """Method of moments: the impression-weighted variance of observed rates, less binomial noise."""
    n, k = (np.asarray(x, float)[np.asarray(impressions) > 0] for x in (impressions, clicks))
    if n.sum() == 0 or k.sum() == 0:
        return Prior(1.0, 1.0)
    m, w = k.sum() / n.sum(), n / n.sum()
    spread, noise = np.sum(w * (k / n - m) ** 2), np.sum(w * m * (1 - m) / n)
    v = spread - noise
    strength = min(STRONGEST, max(1.0, m * (1 - m) / v - 1)) if v > 0 else STRONGEST
    return Prior(float(m * strength), float((1 - m) * strength))


def prob_greater(ax: np.ndarray, bx: np.ndarray, ay: np.ndarray, by: np.ndarray) -> np.ndarray:
    """P(X > Y) for independent X ~ Beta(ax, bx), Y ~ Beta(ay, by), elementwise; error below 1e-4.

    Gauss-Legendre quadrature of the density of one times the distribution function of the other, over ten standard
    deviations around the narrower of the two, so that the nodes lie where the density is.
    """
    ax, bx, ay, by = (np.atleast_1d(np.asarray(v, float)) for v in (ax, bx, ay, by))
    flip = _deviation(ay, by) < _deviation(ax, bx)
    a, b = np.where(flip, ay, ax)[:, None], np.where(flip, by, bx)[:, None]
    c, d = np.where(flip, ax, ay)[:, None], np.where(flip, bx, by)[:, None]
    m, s = a / (a + b), _deviation(a, b)
    lo, hi = np.maximum(0, m - 10 * s), np.minimum(1, m + 10 * s)
    t, w = np.polynomial.legendre.leggauss(NODES)
    v = lo + (hi - lo) * (t + 1) / 2
    density = np.exp((a - 1) * np.log(v) + (b - 1) * np.log1p(-v) - _log_beta(a, b))
    p = np.clip((density * beta_cdf(v, c, d) * w).sum(1) * (hi - lo)[:, 0] / 2, 0, 1)
    return np.where(flip, 1 - p, p)


def beta_cdf(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Regularised incomplete beta function, 0 < x < 1, by its continued fraction (DLMF 8.17.22, modified Lentz)."""
    x, a, b = np.broadcast_arrays(*(np.asarray(v, float) for v in (x, a, b)))
    # The fraction converges fast left of the mode; right of it, I_x(a, b) = 1 - I_{1-x}(b, a).
    mirror = x > (a + 1) / (a + b + 2)
    z, p, q = np.where(mirror, 1 - x, x), np.where(mirror, b, a), np.where(mirror, a, b)
    front = np.exp(p * np.log(z) + q * np.log1p(-z) - _log_beta(p, q)) / p
    tiny = 1e-300
    c, d = np.ones_like(z), 1 - (p + q) * z / (p + 1)
    d = 1 / np.where(np.abs(d) < tiny, tiny, d)
    f = d.copy()
    for n in range(1, 10_000):
        even = n * (q - n) * z / ((p + 2 * n - 1) * (p + 2 * n))
        odd = -(p + n) * (p + q + n) * z / ((p + 2 * n) * (p + 2 * n + 1))
        for k in (even, odd):
            d, c = 1 + k * d, 1 + k / c
            d, c = 1 / np.where(np.abs(d) < tiny, tiny, d), np.where(np.abs(c) < tiny, tiny, c)
            f *= c * d
        if np.all(np.abs(c * d - 1) < 1e-12):
            break
    return np.where(mirror, 1 - front * f, front * f)


def _deviation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(a * b / (a + b + 1)) / (a + b)


_lgamma = np.vectorize(math.lgamma, otypes=[float])


def _log_beta(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """log B(a, b); many nodes share few parameters, so each is computed once."""
    both = np.stack(np.broadcast_arrays(a, b), -1)
    pairs, at = np.unique(both.reshape(-1, 2), axis=0, return_inverse=True)
    value = _lgamma(pairs[:, 0]) + _lgamma(pairs[:, 1]) - _lgamma(pairs.sum(1))
    return value[at.reshape(-1)].reshape(both.shape[:-1])


def holdout(product: str, fraction: float) -> bool:
    """Whether a product is held out of training: schemas.Holdout, FNV-1a over "holdout/" and the id."""
    h = 0x811C9DC5
    for byte in b"holdout/" + product.encode():
        h = (h ^ byte) * 0x01000193 & 0xFFFFFFFF
    return h % 10_000 < fraction * 10_000


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two creatives of a product and which one earned more."""

    id: str
    product: str
    chosen: Evidence
    rejected: Evidence
    chosen_is_left: bool
    weight: float  # 2 P(chosen > rejected) - 1, or 1 under CAIG's rule


@dataclasses.dataclass(frozen=True)
class Rule:
    """How pairs are made."""

    policy: str = POSTERIOR
    min_impressions: int = 100  # of a creative; CAIG's rule has its own floor
    min_weight: float = 0.02  # pairs below are ties: dropped
    max_per_product: int = 0  # heaviest pairs kept; 0: all


def build(rule: Rule, prior: Prior, evidence: list[Evidence]) -> list[Pair]:
    """All pairs, in an order that depends on the evidence alone; placement is empty, the span 0 to 0."""
    by: dict[str, list[Evidence]] = {}
    for e in evidence:
        if e.impressions >= max(1, rule.min_impressions):
            by.setdefault(e.product, []).append(e)
    candidates = list(_candidates(rule, prior, by))
    out: dict[str, list[Pair]] = {}
    for i in range(0, len(candidates), BATCH):
        for p in _weigh(rule, prior, candidates[i : i + BATCH]):
            out.setdefault(p.product, []).append(p)
    if rule.max_per_product:
        out = {k: sorted(v, key=lambda p: -p.weight)[: rule.max_per_product] for k, v in out.items()}
    return [p for k in sorted(out) for p in out[k]]


def _candidates(rule: Rule, prior: Prior, by: dict[str, list[Evidence]]) -> Iterator[tuple[Evidence, Evidence]]:
    """Higher posterior mean first, as in the pairer."""
    for product in sorted(by):
        cell = sorted(by[product], key=lambda e: e.creative)
        for i, a in enumerate(cell):
            for b in cell[i + 1 :]:
                hi, lo = (b, a) if prior.mean(a) < prior.mean(b) else (a, b)
                if rule.policy == POSTERIOR or caig_keeps(hi, lo):
                    yield hi, lo


def _weigh(rule: Rule, prior: Prior, candidates: list[tuple[Evidence, Evidence]]) -> Iterator[Pair]:
    if rule.policy == CAIG:
        weights = np.ones(len(candidates))
    else:
        x, y = (np.array([prior.posterior(c[k]) for c in candidates]) for k in (0, 1))
        weights = 2 * prob_greater(x[:, 0], x[:, 1], y[:, 0], y[:, 1]) - 1
    for (a, b), w in zip(candidates, weights, strict=True):
        if w >= max(rule.min_weight, TIE):
            yield _pair(rule.policy, a, b, float(w))


def _pair(policy: str, a: Evidence, b: Evidence, weight: float) -> Pair:
    what = (a.product, "", a.creative, b.creative, a.impressions, a.clicks, b.impressions, b.clicks, 0, 0, policy)
    h = hashlib.sha256("\x00".join(str(x) for x in what).encode()).digest()
    # The side is a hash: no position to learn from.
    return Pair("pair-" + h[:8].hex(), a.product, a, b, h[15] & 1 == 0, weight)


def caig_keeps(hi: Evidence, lo: Evidence) -> bool:
    """CAIG's hard rule: a floor of impressions, and a gap that is neither small nor large."""
    if min(hi.impressions, lo.impressions) <= CAIG_IMPRESSIONS or not hi.clicks or not lo.clicks:
        return False
    ratio = (hi.clicks / hi.impressions) / (lo.clicks / lo.impressions)
    return CAIG_BAND[0] <= ratio <= CAIG_BAND[1]
