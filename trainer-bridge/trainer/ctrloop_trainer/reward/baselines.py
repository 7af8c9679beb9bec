"""What a reward head can be trained for: ours and the baselines of the field, on the same features and split.

Every objective maps head outputs and labels to a loss; features, penalty, folds, tuning and calibration are shared
(train.py), so that a difference between two rows of the table is a difference of objectives.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import losses
from ..data import Creatives, Pairs, log_odds
from ..errors import BadInputError

# Beta prior that VAM smooths click-through rates with (its published code).
VAM_ALPHA, VAM_BETA = 2.0402, 54.0625
BUCKETS = 8  # of click-through rates, equally full, in the first stage of the two-stage recipe
EVIDENCE = ("soft", "weight", "none")
SCALES = ("standard", "percent", "raw")


@dataclasses.dataclass
class Labels:
    """Per creative, as tensors (n,)."""

    target: Tensor  # of our click-through head, see targets()
    percent: Tensor  # 100 x clicks / impressions
    smoothed: Tensor  # 100 x (clicks + VAM_ALPHA) / (impressions + VAM_ALPHA + VAM_BETA)
    bucket: Tensor  # which BUCKETS-quantile of smoothed
    bucket_value: Tensor  # (BUCKETS,) mean smoothed rate of each
    impressions: Tensor

    @staticmethod
    def of(c: Creatives, train: np.ndarray, scale: str = "percent") -> "Labels":
        """Labels of all creatives; train says which of them fix units and quantiles."""
        imp, clk = c.impressions.astype(float), c.clicks.astype(float)
        smoothed = 100 * (clk + VAM_ALPHA) / (imp + VAM_ALPHA + VAM_BETA)
        edges = np.quantile(smoothed[train], np.arange(1, BUCKETS) / BUCKETS)
        bucket = np.searchsorted(edges, smoothed)
        # An empty bucket (few creatives, ties) says what the average says.
        mean = smoothed[train].mean()
        value = [
            smoothed[train][bucket[train] == b].mean() if (bucket[train] == b).any() else mean for b in range(BUCKETS)
        ]
        rows = (targets(c, train, scale), 100 * clk / np.maximum(imp, 1), smoothed)
        tensors = [torch.tensor(np.asarray(r), dtype=torch.float32) for r in (*rows, value, imp)]
        return Labels(*tensors[:3], torch.tensor(bucket), *tensors[3:])

    def of_rows(self, rows: np.ndarray) -> "Labels":
        """The labels of some creatives."""
        each = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Labels(**{k: v if k == "bucket_value" else v[rows] for k, v in each.items()})


def targets(c: Creatives, train: np.ndarray, scale: str) -> np.ndarray:
    """What our click-through head is to say, (n,): 100 x clicks / impressions; or the log-odds of the Beta posterior,
    standardised over the training creatives; or raw clicks / impressions.

    Raw rates lie near 0.03: their squared error is below 0.001 and teaches nothing beside a cross-entropy of 0.69. The
    posterior is shrunk already, and our loss weighs by impressions besides: few impressions count for little twice.
    """
    if scale not in SCALES:
        raise BadInputError(f"hyper.ctr_scale: {scale!r} is unknown, use one of {', '.join(SCALES)}")
    if scale == "standard":
        z = log_odds(c.posterior_mean)
        return (z - z[train].mean()) / (z[train].std() + 1e-9)
    return c.clicks / np.maximum(c.impressions, 1) * (100 if scale == "percent" else 1)


def pair_targets(pairs: Pairs, evidence: str) -> tuple[Tensor, Tensor]:
    """Target P(left wins) and weight of each pair, (n,) each.

    soft: the posterior's own probability, every pair alike; weight: who leads, weighted by the evidence
    2 P(hi > lo) - 1; none: who leads, every pair alike.
    """
    if evidence not in EVIDENCE:
        raise BadInputError(f"hyper.evidence: {evidence!r} is unknown, use one of {', '.join(EVIDENCE)}")
    wins, weight = pairs.left_wins.astype(float), pairs.weight.astype(float)
    target = 0.5 + (wins - 0.5) * weight if evidence == "soft" else wins
    weight = weight if evidence == "weight" else np.ones_like(weight)
    return torch.tensor(target, dtype=torch.float32), torch.tensor(weight, dtype=torch.float32)


@dataclasses.dataclass
class Lesson:
    """What one fit learns from: all of it at once, so that a fit has no order of batches to depend on."""

    features: Tensor  # (n, f) of the creatives that take part
    product: Tensor  # (n,) which product, 0 to products - 1
    weight: Tensor  # (n,) how often the creative's product was drawn; 1 without a bootstrap
    labels: Labels  # of these creatives
    left: Tensor  # (pairs,) rows of features
    right: Tensor
    pair_target: Tensor  # P(left wins)
    pair_weight: Tensor

    @property
    def products(self) -> int:
        return int(self.product.max()) + 1

    def centred(self, values: Tensor, weight: Tensor) -> Tensor:
        """values (n,) less their weighted mean over each product."""
        sums = torch.zeros(2, self.products, dtype=values.dtype)
        sums = sums.index_add(1, self.product, torch.stack([weight * values, weight]))
        return values - (sums[0] / sums[1].clamp_min(1e-9))[self.product]


@dataclasses.dataclass(frozen=True)
class Objective:
    """One row of the table."""

    name: str
    columns: tuple[int, ...]  # head outputs that may rank; more than one: validation products say how to mix them
    loss: Callable[[Tensor, Lesson], Tensor]  # of outputs (n, 2)
    first: Callable[[Tensor, Lesson], Tensor] | None = None  # of bucket logits (n, BUCKETS): a stage before


def ours(point_weight: float = 0.5, centred: bool = True) -> Objective:
    """CE + point_weight x MSE (CAIG), with what our evidence adds: the target of a pair is its posterior probability,
    and the point loss compares within a product, weighted by impressions.

    The level of a product decides no pair and varies more than its creatives do; centred takes it out of both sides
    of the point loss instead of making the features explain it.
    """

    def loss(out: Tensor, x: Lesson) -> Tensor:
        pair = losses.weighted_pair(out[x.left, 0], out[x.right, 0], x.pair_target, x.pair_weight)
        weight = x.weight * x.labels.impressions
        error = out[:, 1] - x.labels.target
        error = x.centred(error, weight) if centred else error
        return pair + point_weight * (weight * error**2).sum() / weight.sum()

    return Objective("ours", (0, 1) if point_weight else (0,), loss)


def _lists(out: Tensor, targets: Tensor, weight: Tensor, x: Lesson) -> Tensor:
    """Mean over products of losses.listwise with the given creative weights."""
    each = torch.stack([_log_softmax(v, x) for v in (out, targets)])
    part = -weight * each[1].exp() * each[0]
    sums = torch.zeros(3, x.products)
    sums = sums.index_add(1, x.product, torch.stack([part, weight, torch.ones_like(weight)]))
    drawn = torch.zeros(x.products).index_copy(0, x.product, x.weight)
    return (drawn * sums[0] / (sums[1] / sums[2]).clamp_min(1e-9)).sum() / drawn.sum()


def _log_softmax(values: Tensor, x: Lesson) -> Tensor:
    """log softmax of values (n,) within each product."""
    top = torch.full((x.products,), -torch.inf).scatter_reduce(0, x.product, values.detach(), "amax")
    shifted = values - top[x.product]
    return shifted - torch.zeros(x.products).index_add(0, x.product, shifted.exp()).log()[x.product]


def _squared(out: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return (weight * (out - target) ** 2).sum() / weight.sum()


def _vam(out: Tensor, x: Lesson) -> Tensor:
    """Listwise on smoothed rates, log-impression weights, plus 0.5 point loss at ctr x 100."""
    y, w = x.labels.smoothed, x.labels.impressions.clamp_min(2).log()
    return _lists(out[:, 0], y, w, x) + 0.5 * _squared(out[:, 1], y, w * x.weight)


def _cg4ctr(out: Tensor, x: Lesson) -> Tensor:
    """0.9 listwise + 0.1 impression-weighted squared error, one score for both."""
    y, w = x.labels.percent, x.labels.impressions.clamp_min(1)
    return 0.9 * _lists(out[:, 0], y, torch.ones_like(y), x) + 0.1 * _squared(out[:, 0], y, w * x.weight)


def _pointwise(out: Tensor, x: Lesson) -> Tensor:
    """Regression of ctr x 100, weighted by impressions; pairs are never looked at."""
    return _squared(out[:, 1], x.labels.percent, x.weight * x.labels.impressions.clamp_min(1))


def _buckets(logits: Tensor, x: Lesson) -> Tensor:
    """First stage: classification of click-through buckets."""
    each = F.cross_entropy(logits, x.labels.bucket, reduction="none")
    return (x.weight * each).sum() / x.weight.sum()


def _soft_gap(out: Tensor, x: Lesson) -> Tensor:
    """Second stage: pairwise cross-entropy with the target sigmoid(gap of the smoothed rates, in per cent), so that
    a small gap asks for a small preference, plus 0.2 squared error, one score for both."""
    y = x.labels.smoothed
    target = torch.sigmoid(y[x.left] - y[x.right])
    drawn = x.weight[x.left]
    pair = losses.weighted_pair(out[x.left, 0], out[x.right, 0], target, drawn)
    return pair + 0.2 * _squared(out[:, 0], y, x.weight)


BASELINES = (
    Objective("pointwise", (1,), _pointwise),
    Objective("vam", (0,), _vam),
    Objective("cg4ctr", (0,), _cg4ctr),
    Objective("two_stage", (0,), _soft_gap, _buckets),
)
