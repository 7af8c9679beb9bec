"""Figures on products that training never saw: the same requests and drawing seeds in every epoch and arm.

One half of these products is the gates', the other the report's, each with its own requests, samples and seeds.
"""

import itertools
import random
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data import Product, bootstrap_interval
from ..errors import BadInputError
from ..matching import text_figures
from ..prompt.model import Ask, PromptModel, question
from ..render import Shot
from ..reward.scorer import PairScorer, both_orders
from ..spec import derive
from . import relevance
from .settings import Hyper
from .shop import Shop

# First seed of the drawings, by whose products: far from those of training and from each other.
FIRST_SEED = {"held": 100_000, "report": 500_000}


def halves(held: Sequence[Product]) -> tuple[list[Product], list[Product]]:
    """The gates' products and the report's. Alternately by department, so that both halves are alike, and by hash
    within one, so that nobody chose."""
    order = sorted(held, key=lambda p: (p.department, zlib.crc32(f"gate/{p.id}".encode()), p.id))
    if len(order) < 2:
        raise BadInputError(
            f"{len(order)} held-out product: gates and report need at least one each, and not the same; hold more out"
        )
    return order[::2], order[1::2]


class Held:
    """Requests, and what the base answered: gains and distances are against that."""

    def __init__(
        self, base: PromptModel, shop: Shop, h: Hyper, seed: int, products: Sequence[Product], name: str = "held"
    ):
        """name, "held" or "report", decides everything random."""
        self.shop, self.h, self.seed, self.name, self.products = shop, h, seed, name, list(products)
        rng = random.Random(f"{name}/{seed}")
        self.rows = [p for p in self.products for _ in range(h.held_samples)]
        self._instructions = [rng.choice(base.prompting.instructions) for _ in self.rows]
        self.asks = [Ask(question(p.caption, i), p.id) for p, i in zip(self.rows, self._instructions, strict=True)]
        self._line_ups = self._ask_others()
        self.base_texts = self.write(base)
        self._base_images = self._draw(self.base_texts)
        self.base_figures = {**self._text(self.base_texts), **self._distance(base, self.base_texts), "epoch": 0}

    def _ask_others(self) -> dict[int, list[Ask]]:
        """Row -> its question about its own product and about the distractors; of every product, a few rows."""
        h = self.h
        some = [i for i in range(len(self.rows)) if i % h.held_samples < h.relevance_samples]
        ups = relevance.line_ups([self.rows[i] for i in some], self.shop.held, self.seed)
        return {
            i: [Ask(question(q.caption, self._instructions[i]), q.id) for q in up]
            for i, up in zip(some, ups, strict=True)
        }

    def write(self, v: PromptModel) -> list[str]:
        """A model's descriptions, one a row."""
        return v.sample(self.asks, derive(self.seed, self.name))

    def _text(self, texts: list[str]) -> dict[str, float]:
        out = text_figures(self.rows, texts, self.shop.grammar)
        # Valid is never 0 in a model worth a look; where it is, nothing matches.
        if out["matching"] is not None:
            out["matching_valid"] = out["matching"] / out["valid"] if out["valid"] else 0.0
        out["variety"] = variety(texts, self.h.held_samples)
        return out

    def _draw(self, texts: list[str]) -> np.ndarray:
        # The drawing seed follows the row, so that base and epoch differ by their descriptions only.
        first = FIRST_SEED[self.name]
        shots = [Shot(p.id, t, first + i) for i, (p, t) in enumerate(zip(self.rows, texts, strict=True))]
        return self.shop.renderer.render(shots)[0]

    def _gains(self, texts: list[str]) -> dict[str, np.ndarray]:
        """Of each row, by reward model: log-odds that its picture earns more clicks than the base's."""
        images, captions = self._draw(texts), [p.caption for p in self.rows]
        judges = {"reward": self.shop.reward, "referee": self.shop.referee}
        return {name: log_odds_over(j, captions, images, self._base_images) for name, j in judges.items() if j}

    def _distance(self, v: PromptModel, texts: list[str]) -> dict[str, float]:
        """Protocol B and the distance from the base: kl is the mean of log p - ref over the model's own samples, in
        nats per description."""
        at = list(self._line_ups)
        asks, some = [self._line_ups[i] for i in at], [texts[i] for i in at]
        v.model.eval()
        own = relevance.matrix(v.logps, asks, some)
        base = own
        if hasattr(v.model, "disable_adapter"):
            with v.model.disable_adapter():
                base = relevance.matrix(v.logps, asks, some)
        valid = np.array([self.shop.grammar.parse(t) is not None for t in some])
        return {**relevance.figures(own, base, valid), "kl": float((own[:, 0] - base[:, 0]).mean())}

    def figures(self, v: PromptModel, epoch: int) -> tuple[dict[str, Any], list[str]]:
        """Figures of an epoch's model and its descriptions; gains are in log-odds over the base's samples."""
        texts = self.write(v)
        out: dict[str, Any] = {"epoch": epoch, **self._text(texts)}
        for name, each in self._gains(texts).items():
            gain = each.reshape(len(self.products), -1).mean(1)
            out[f"{name}_gain"] = float(gain.mean())
            out[f"{name}_gain_low"], out[f"{name}_gain_high"] = bootstrap_interval(gain)
        out |= self._distance(v, texts)
        out["words"] = float(np.mean([len(t.split()) for t in texts]))
        return out, texts


def log_odds_over(judge: PairScorer, captions: list[str], images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Log-odds of each picture against another of the same product. Of a model that scores single creatives it is their
    difference; one that only judges pairs is asked in both orders."""
    if hasattr(judge, "scores"):
        return judge.scores(captions, images) - judge.scores(captions, others)
    p = np.clip(both_orders(judge, captions, images, others).p_left, 1e-6, 1 - 1e-6)
    return np.log(p) - np.log1p(-p)


def variety(texts: list[str], per_product: int) -> float:
    """How much two descriptions of one product differ: the mean share of words that only one of them has (Jaccard
    distance), over all pairs of a product's texts, which lie together. 0: always the same words. Two different
    descriptions may still share all but one word, so the share of distinct ones stays high long after this has fallen.
    """
    words = [set(t.replace(",", " ").split()) for t in texts]
    pairs = [
        (words[i + a], words[i + b])
        for i in range(0, len(texts), per_product)
        for a, b in itertools.combinations(range(per_product), 2)
    ]
    return float(np.mean([1 - len(a & b) / max(len(a | b), 1) for a, b in pairs])) if pairs else 0.0
