"""What a reward head can be trained for: ours and the baselines of the field, on the same features and split.

Every objective maps head outputs and labels to a loss; the training loop, the early stop and the tuning are shared
(reward.py), so that a difference between two rows of the table is a difference of objectives.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import losses
from ..data import Creatives, Pairs, log_odds

# Beta prior that VAM smooths click-through rates with (its published code).
VAM_ALPHA, VAM_BETA = 2.0402, 54.0625


@dataclasses.dataclass
class Labels:
    """Per creative, as tensors."""

    standard: Tensor  # posterior log-odds, standardised over the training creatives
    percent: Tensor  # 100 x clicks / impressions
    smoothed: Tensor  # 100 x (clicks + VAM_ALPHA) / (impressions + VAM_ALPHA + VAM_BETA)
    impressions: Tensor

    @staticmethod
    def of(c: Creatives, train: np.ndarray) -> "Labels":
        """Labels of all creatives; train says which of them fix the standardisation."""
        z = log_odds(c.posterior_mean)
        z = (z - z[train].mean()) / (z[train].std() + 1e-9)
        imp, clk = c.impressions.astype(float), c.clicks.astype(float)
        smoothed = (clk + VAM_ALPHA) / (imp + VAM_ALPHA + VAM_BETA)
        rows = (z, 100 * clk / np.maximum(imp, 1), 100 * smoothed, imp)
        return Labels(*(torch.tensor(r, dtype=torch.float32) for r in rows))


@dataclasses.dataclass(frozen=True)
class Objective:
    """One row of the table."""

    name: str
    column: int  # head output that ranks: 0 or 1
    by_pair: bool  # batches of pairs, or of whole products (lists)
    loss: Callable[..., Tensor]


def _ours(out: Tensor, n: int, pairs: Pairs, labels: Labels, rows: np.ndarray) -> Tensor:
    """out holds the left creatives' outputs, then the right ones'."""
    left, right = out[:n], out[n:]
    wins, weight = torch.tensor(pairs.left_wins), torch.tensor(pairs.weight, dtype=torch.float32)
    target = (labels.standard[rows[:n]], labels.standard[rows[n:]])
    return losses.two_head((left[:, 0], right[:, 0]), (left[:, 1], right[:, 1]), target, wins, weight)


def _vam(out: Tensor, rows: np.ndarray, labels: Labels) -> Tensor:
    """Listwise on smoothed rates, log-impression weights, plus 0.5 point loss at ctr x 100."""
    y, w = labels.smoothed[rows], labels.impressions[rows].clamp_min(2).log()
    point = (w * (out[:, 1] - y) ** 2).sum() / w.sum()
    return losses.listwise(out[:, 0], y, w) + 0.5 * point


def _cg4ctr(out: Tensor, rows: np.ndarray, labels: Labels) -> Tensor:
    """0.9 listwise + 0.1 impression-weighted squared error, one score for both."""
    y, w = labels.percent[rows], labels.impressions[rows].clamp_min(1)
    point = (w * (out[:, 0] - y) ** 2).sum() / w.sum()
    return 0.9 * losses.listwise(out[:, 0], y, torch.ones_like(y)) + 0.1 * point


def _pointwise(out: Tensor, rows: np.ndarray, labels: Labels) -> Tensor:
    """Regression of ctr x 100, weighted by impressions; pairs are never looked at."""
    y, w = labels.percent[rows], labels.impressions[rows].clamp_min(1)
    return (w * F.mse_loss(out[:, 1], y, reduction="none")).sum() / w.sum()


OURS = Objective("ours", 0, True, _ours)
BASELINES = (
    Objective("vam", 0, False, _vam),
    Objective("cg4ctr", 0, False, _cg4ctr),
    Objective("pointwise", 1, False, _pointwise),
)
