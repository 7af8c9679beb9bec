"""How good is a judge of pairs: figures over noisy labels, with intervals over products and the noise ceiling.

Everything here is arithmetic on predictions: whoever made them is judged alike.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from ..data import Creatives, Pairs
from .scorer import category_path

DRAWS = 1000  # bootstrap draws of products
GAPS = (0.0, 0.1, 0.2, 0.4, 0.8, math.inf)  # edges of |difference| / mean of the observed click-through rates
IMPRESSIONS = (0, 50, 100, 200, 400, 800, 1600, math.inf)  # edges, of the side that has fewer
BINS = 10  # of calibration


@dataclasses.dataclass
class Exam:
    """The pairs to judge, and what is known of them."""

    creatives: Creatives
    pairs: Pairs
    truth: dict[str, float] | None = None  # true click-through rate by creative, where a simulation knows it

    def __post_init__(self) -> None:
        _, self.product = np.unique(np.array(self.pairs.products, object), return_inverse=True)
        self.true_gap = None
        if self.truth is not None:
            rates = np.array([self.truth.get(i, np.nan) for i in self.creatives.ids])
            self.true_gap = rates[self.pairs.left] - rates[self.pairs.right]

    @property
    def evidence(self) -> tuple[np.ndarray, np.ndarray]:
        """Impressions and clicks of left and right, (n, 2) each: the pair's own cell's, else the creatives'."""
        p, c = self.pairs, self.creatives
        if p.impressions is not None and p.clicks is not None:
            return p.impressions.astype(float), p.clicks.astype(float)
        rows = np.stack([p.left, p.right], 1)
        return c.impressions[rows].astype(float), c.clicks[rows].astype(float)


def correct(score: np.ndarray, wins: np.ndarray) -> np.ndarray:
    """1 where the sign of score (left less right) says who wins, 0 where not; a tie is half right."""
    return np.where(score == 0, 0.5, (score > 0) == wins).astype(float)


def product_bootstrap(values: np.ndarray, product: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of values (one per pair) over draws of products, each with all its pairs: pairs of
    one product share creatives and are no independent witnesses."""
    if not len(values):
        return math.nan, math.nan
    sums, counts = np.bincount(product, values), np.bincount(product)
    draws = np.random.default_rng(seed).integers(0, len(sums), (DRAWS, len(sums)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def ceilings(exam: Exam, train: Creatives | None = None) -> dict[str, float]:
    """What the best possible judge would score on these labels, told in up to three ways.

    posterior: the mean of P(hi > lo) that the pair builder wrote. fitted: the same, with the spread of true rates
    within a product estimated from the creatives by moments (the builder's prior spans products, placements and
    windows, and is too wide for two creatives of one product). oracle: the accuracy of the true order, where known.
    """
    p = exam.pairs
    out = {"posterior": float(np.mean((1 + p.weight) / 2)), "fitted": _fitted_ceiling(exam, train or exam.creatives)}
    if exam.true_gap is not None:
        out["oracle"] = float(correct(exam.true_gap, p.left_wins).mean())
    return out


def _fitted_ceiling(exam: Exam, creatives: Creatives) -> float:
    """Normal-normal: with relative gap d ~ N(true gap, v), true gap ~ N(0, t), the sign of d is right with
    probability Phi(|d| sqrt(t / (v (t + v))))."""
    imp, clk = exam.evidence
    rate = (clk.sum(1) + 1) / (imp.sum(1) + 30)  # of the cell; a hair of shrinkage for cells without clicks
    gap = np.diff(clk / np.maximum(imp, 1), axis=1)[:, 0] / rate
    noise = ((1 - rate[:, None]) / (rate[:, None] * np.maximum(imp, 1))).sum(1)
    spread = 2 * within_variance(creatives)
    z = np.abs(gap) * np.sqrt(spread / (noise * (spread + noise)))
    return float(np.mean([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in z])) if len(z) else math.nan


def within_variance(c: Creatives) -> float:
    """Variance of creatives' true click-through rates around their product's, relative to it, by moments: observed
    variance less the binomial one."""
    _, product = np.unique(np.array(c.products, object), return_inverse=True)
    imp, clk = c.impressions.astype(float), c.clicks.astype(float)
    rate = (np.bincount(product, clk) / np.maximum(np.bincount(product, imp), 1))[product]
    use = (imp > 0) & (rate > 0)
    imp, rate, product, ratio = imp[use], rate[use], product[use], (clk[use] / imp[use]) / rate[use]
    noise = (1 - rate) / (rate * imp)
    share = imp / np.bincount(product, imp)[product]  # the product's mean moves with the creative
    weight = 1 / noise
    excess = (ratio - 1) ** 2 / np.maximum(1 - share, 1e-3) - noise
    return float(max(np.average(excess, weights=weight), 1e-6)) if len(excess) else 1e-6


def row(name: str, p_left: np.ndarray, exam: Exam, ceiling: float, tau: float = 0.0) -> dict[str, object]:
    """The table's row of a model that says P(left wins), both orders averaged."""
    pairs, wins = exam.pairs, exam.pairs.left_wins
    right = correct(p_left - 0.5, wins)
    low, high = product_bootstrap(right, exam.product)
    decided = np.abs(p_left - 0.5) >= tau
    out = {
        "model": name,
        "pairs": len(pairs),
        "products": int(exam.product.max()) + 1 if len(pairs) else 0,
        "accuracy": float(right.mean()),
        "low": low,
        "high": high,
        "weighted_accuracy": float(np.average(right, weights=pairs.weight + 1e-9)),
        "fraction_of_ceiling": fraction(right.mean(), ceiling),
        "log_loss": log_loss(p_left, wins),
        "calibration_error": calibration_error(p_left, wins.astype(float)),
        "reliability": reliability(p_left, wins.astype(float)),
        "abstained": float(np.mean(~decided)),
        "accuracy_decided": float(right[decided].mean()) if decided.any() else None,
        **breakdowns(right, exam),
    }
    if exam.true_gap is not None:
        true = correct(p_left - 0.5, exam.true_gap > 0)
        out["accuracy_true"] = float(true.mean())
        out["accuracy_true_low"], out["accuracy_true_high"] = product_bootstrap(true, exam.product)
    return out


def fraction(accuracy: float, ceiling: float) -> float | None:
    """(accuracy - 0.5) / (ceiling - 0.5): the share of what can be known that is known."""
    return float((accuracy - 0.5) / (ceiling - 0.5)) if ceiling > 0.5 else None


def log_loss(p: np.ndarray, truth: np.ndarray) -> float:
    """Mean negative log-likelihood of what happened."""
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return float(-np.mean(np.where(truth, np.log(p), np.log1p(-p)))) if len(p) else math.nan


def calibration_error(p: np.ndarray, truth: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: mean |probability - frequency| over equal-width bins, weighted by size."""
    at = np.minimum((p * bins).astype(int), bins - 1)
    return float(sum(abs(p[at == b].sum() - truth[at == b].sum()) for b in range(bins)) / max(1, len(p)))


def reliability(p: np.ndarray, truth: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """The bins behind calibration_error that hold something: mean probability against frequency."""
    at = np.minimum((p * bins).astype(int), bins - 1)
    return [
        {"from": b / bins, "to": (b + 1) / bins, "pairs": int((at == b).sum()),
         "said": float(p[at == b].mean()), "happened": float(truth[at == b].mean())}
        for b in range(bins) if (at == b).any()
    ]  # fmt: skip


def breakdowns(right: np.ndarray, exam: Exam) -> dict[str, list[dict[str, object]]]:
    """Accuracy by observed gap, by impressions of the weaker side, by first level of the category."""
    imp, clk = exam.evidence
    rate = clk / np.maximum(imp, 1)
    gap = np.abs(rate[:, 0] - rate[:, 1]) / np.maximum(rate.mean(1), 1e-9)
    captions = exam.creatives.captions
    category = np.array([(category_path(captions[i]) or ("",))[0] for i in exam.pairs.left], object)
    by_category = [
        {"category": c, "pairs": int((category == c).sum()), "accuracy": float(right[category == c].mean())}
        for c in sorted(set(category))
    ]
    return {
        "by_gap": _by(gap, GAPS, right),
        "by_impressions": _by(imp.min(1), IMPRESSIONS, right),
        "by_category": by_category,
    }


def _by(values: np.ndarray, edges: Sequence[float], right: np.ndarray) -> list[dict[str, object]]:
    out = []
    for low, high in itertools.pairwise(edges):
        inside = (values >= low) & (values < high)
        if inside.any():
            top = None if math.isinf(high) else high
            out.append({"from": low, "to": top, "pairs": int(inside.sum()), "accuracy": float(right[inside].mean())})
    return out


def paired(a: np.ndarray, b: np.ndarray, exam: Exam) -> dict[str, float]:
    """Accuracy of predictions a less that of b on the same pairs, with the interval over products."""
    difference = correct(a - 0.5, exam.pairs.left_wins) - correct(b - 0.5, exam.pairs.left_wins)
    low, high = product_bootstrap(difference, exam.product)
    return {"difference": float(difference.mean()), "low": low, "high": high}


def true_correlation(score: np.ndarray, creatives: Creatives, truth: dict[str, float], rows: np.ndarray) -> float:
    """Correlation of a score per creative with the log of the true rate, both centred by product, over rows."""
    rate = np.array([truth.get(creatives.ids[i], np.nan) for i in rows])
    _, product = np.unique(np.array([creatives.products[i] for i in rows], object), return_inverse=True)
    a, b = (v - (np.bincount(product, v) / np.bincount(product))[product] for v in (score[rows], np.log(rate)))
    spread = a.std() * b.std()
    return float((a * b).mean() / spread) if spread > 0 else 0.0
