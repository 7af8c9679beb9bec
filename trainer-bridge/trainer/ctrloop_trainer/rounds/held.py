"""Figures on products that training never saw: the same requests and drawing seeds in every epoch and arm."""

import itertools
import random
from typing import Any

import numpy as np

from ..data import bootstrap_interval
from ..matching import text_figures
from ..prompt.model import Ask, PromptModel, question
from ..render import Shot
from ..spec import derive
from . import relevance
from .settings import Hyper
from .shop import Shop

FIRST_SEED = 100_000  # of the drawings: far from those of training


class Held:
    """Requests, and what the base answered: gains and distances are against that."""

    def __init__(self, base: PromptModel, shop: Shop, h: Hyper, seed: int):
        self.shop, self.h, self.seed = shop, h, seed
        rng = random.Random(f"held/{seed}")
        self.rows = [p for p in shop.held for _ in range(h.held_samples)]
        self._instructions = [rng.choice(base.prompting.instructions) for _ in self.rows]
        self.asks = [Ask(question(p.caption, i), p.id) for p, i in zip(self.rows, self._instructions, strict=True)]
        self._line_ups = self._ask_others()
        self.base_texts = self._write(base)
        self._base_scores = self._scores(self.base_texts)
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

    def _write(self, v: PromptModel) -> list[str]:
        return v.sample(self.asks, derive(self.seed, "held"))

    def _text(self, texts: list[str]) -> dict[str, float]:
        out = text_figures(self.rows, texts, self.shop.grammar)
        # Valid is never 0 in a model worth a look; where it is, nothing matches.
        out["matching_valid"] = out["matching"] / out["valid"] if out["valid"] else 0.0
        out["variety"] = variety(texts, self.h.held_samples)
        return out

    def _scores(self, texts: list[str]) -> dict[str, np.ndarray]:
        # The drawing seed follows the row, so that base and epoch differ by their descriptions only.
        shots = [Shot(p.id, t, FIRST_SEED + i) for i, (p, t) in enumerate(zip(self.rows, texts, strict=True))]
        images, _ = self.shop.renderer.render(shots)
        captions = [p.caption for p in self.rows]
        judges = {"reward": self.shop.reward, "referee": self.shop.referee}
        return {name: j.scores(captions, images) for name, j in judges.items() if j}

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
        texts = self._write(v)
        out: dict[str, Any] = {"epoch": epoch, **self._text(texts)}
        for name, s in self._scores(texts).items():
            gain = (s - self._base_scores[name]).reshape(len(self.shop.held), -1).mean(1)
            out[f"{name}_gain"] = float(gain.mean())
            out[f"{name}_gain_low"], out[f"{name}_gain_high"] = bootstrap_interval(gain)
        out |= self._distance(v, texts)
        out["words"] = float(np.mean([len(t.split()) for t in texts]))
        return out, texts


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
