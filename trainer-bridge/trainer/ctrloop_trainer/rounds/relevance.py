"""Matching by protocol B, without a judge: does a description tell its product from nine others?

For a description y that was written for product x, the model's log p(y|x') of the true product and of nine distractors
under the same instruction. The log-ratios log p(y|x) - log p(y|x') order the ten as Bayes' rule does with equal odds
beforehand; the true product should come first. A description that suits everybody (a garish one, say) says nothing
about the product: its rank is chance, one in ten.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch

from ..data import Product

DISTRACTORS = 9


def line_ups(rows: Sequence[Product], products: Sequence[Product], seed: int) -> list[list[Product]]:
    """For each row its own product first, then nine others drawn from products (fewer, where there are fewer)."""
    rng = random.Random(f"line-up/{seed}")
    out = []
    for p in rows:
        others = [q for q in products if q.base != p.base]
        out.append([p, *rng.sample(others, min(DISTRACTORS, len(others)))])
    return out


def ranks(logp: np.ndarray) -> np.ndarray:
    """Place of column 0 in each row of (n, candidates), best 1; a tie gets the middle of its places."""
    own = logp[:, :1]
    return 1 + (logp[:, 1:] > own).sum(1) + 0.5 * (logp[:, 1:] == own).sum(1)


def information(logp: np.ndarray) -> float:
    """Nats that a description tells of its product among the candidates: mean log softmax at column 0 plus
    log(candidates). 0 by chance, at most log 10 = 2.30; a lower bound of the mutual information of x and y when logp
    is the writer's own (InfoNCE: van den Oord 2018, Poole 2019)."""
    top = logp.max(1, keepdims=True)
    posterior = logp[:, 0] - top[:, 0] - np.log(np.exp(logp - top).sum(1))
    return float(posterior.mean() + np.log(logp.shape[1]))


def figures(own: np.ndarray, base: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Protocol B from log p(y|x'), (n, candidates), by the model that wrote y and by the base (epoch 0).

    matching_b, reciprocal_rank: by the writer; matching_b_valid: among well-formed descriptions, while elsewhere a
    malformed one does not match. matching_b_base: epoch 0 as the judge, the same one for every arm. matching_b_ratio:
    by log p - ref, what training added (the implicit reward of DPO); chance for the base. information_base: nats, by
    the same fixed judge.
    """
    place = ranks(own)
    first = (place == 1) & valid
    return {
        "matching_b": float(first.mean()),
        "matching_b_valid": float(first[valid].mean()) if valid.any() else 0.0,
        "reciprocal_rank": float((valid / place).mean()),
        "matching_b_base": float(((ranks(base) == 1) & valid).mean()),
        "matching_b_ratio": float(np.where(valid, ranks(own - base) == 1, False).mean())
        if not np.array_equal(own, base)
        else 1 / own.shape[1],
        "information": information(own),
        "information_base": information(base),
    }


@torch.no_grad()
def matrix(score, asks: Sequence[Sequence], texts: Sequence[str], batch: int = 64) -> np.ndarray:
    """log p of text i under each of asks[i], (n, candidates); score is PromptModel.logps."""
    flat = [(a, t) for row, t in zip(asks, texts, strict=True) for a in row]
    parts = [
        score([a for a, _ in flat[i : i + batch]], [t for _, t in flat[i : i + batch]]).float().cpu().numpy()
        for i in range(0, len(flat), batch)
    ]
    return np.concatenate(parts).astype(np.float64).reshape(len(texts), -1)
