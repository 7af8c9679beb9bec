"""Losses of the preference rounds and of the reward models, on plain tensors: no model, no data, testable by hand.

Notation: logp = sum of log-probabilities over an answer's tokens; ref = the same under the epoch-0 model;
x = picture and caption of the product, x~ = the same with the product corrupted; y+ and y- the preferred answers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    p: Tensor | None = None,
) -> Tensor:
    """-log sigmoid(beta [(logp(y+|x) - ref(y+|x)) - (logp(y-|x) - ref(y-|x))]), mean over the batch (Rafailov 2023).

    With p, P(y+ wins) by the reward model, the cross-entropy against that probability instead of against certainty
    (conservative DPO, Mitchell 2023): -p log sigmoid(z) - (1 - p) log sigmoid(-z), least at z = log(p / (1 - p)).
    """
    z = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    if p is None:
        return -F.logsigmoid(z).mean()
    return -(p * F.logsigmoid(z) + (1 - p) * F.logsigmoid(-z)).mean()


def pcpo(chosen: Tensor, corrupted: Tensor, ref_chosen: Tensor, ref_corrupted: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta [(logp(y+|x) - ref(y+|x)) - (logp(y+|x~) - ref(y+|x~))]), mean over the batch (CAIG).

    The answer is y+ on both sides: the product is the sole variable. The corrupted ones may have several rows, one for
    each x~ of a sample.
    """
    return -F.logsigmoid(beta * ((chosen - ref_chosen) - (corrupted - ref_corrupted))).mean()


def anchor(chosen: Tensor, ref_chosen: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta (logp(y+|x) - ref(y+|x))): keeps y+ from sinking along with y- (mDPO)."""
    return -F.logsigmoid(beta * (chosen - ref_chosen)).mean()


def token_nll(chosen: Tensor, length: Tensor) -> Tensor:
    """Mean negative log-likelihood of y+ per token, every answer weighing the same."""
    return -(chosen / length).mean()


def weighted_pair(left: Tensor, right: Tensor, left_wins: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of "left wins" under sigmoid(left - right), weighted by the evidence of each pair.

    Equal to the two-logit softmax cross-entropy of CAIG's reward model.
    """
    each = F.binary_cross_entropy_with_logits(left - right, left_wins.to(left.dtype), reduction="none")
    return (weight * each).sum() / weight.sum().clamp_min(1e-9)


def two_head(
    preference: tuple[Tensor, Tensor],
    ctr: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
    left_wins: Tensor,
    weight: Tensor,
) -> Tensor:
    """CE + 0.5 MSE of CAIG's reward model.

    target are standardised posterior log-odds: raw click-through rates near 0.03 would give the point loss no gradient.
    """
    point = F.mse_loss(torch.stack(ctr), torch.stack(target))
    return weighted_pair(*preference, left_wins, weight) + 0.5 * point


def listwise(scores: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Top-one listwise loss (ListNet): cross-entropy between softmax(targets) and softmax(scores) of one product."""
    return -(weight * torch.softmax(targets, 0) * torch.log_softmax(scores, 0)).sum() / weight.mean().clamp_min(1e-9)
