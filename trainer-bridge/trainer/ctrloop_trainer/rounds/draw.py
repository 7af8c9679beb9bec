"""An epoch's samples: two descriptions per product, same drawing seed, ranked in both orders; x~ for each."""

import dataclasses
import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data import Product
from ..errors import NoEvidenceError
from ..prompt.model import Ask, PromptModel, question
from ..render import Shot
from ..reward.scorer import PairScorer, Scored, both_orders
from ..spec import derive
from .corrupt import choose, mask_patches, other_product
from .settings import Hyper
from .shop import Shop

ROUNDING = 1e-6  # (0.9 + 1 - 0.9) / 2 is not 0.5: a judge without an opinion must not get one from the last bit
Key = tuple[int, str]  # position of a product in the epoch, description


@dataclasses.dataclass(frozen=True)
class Sample:
    """x, x~, y+ and y- of one product; plain values only, so that a checkpoint can hold it."""

    product: str
    text: str  # the question about x
    corrupted_text: str  # the question about x~: another caption, or the same string
    how: str  # "image", "caption" or "none"
    mask_seed: int  # of x~'s picture, where how is "image"
    chosen: str
    rejected: str
    elsewhere: str  # y+ of another product of the epoch: something well-formed to say about x~
    p: float  # of the chosen, by the reward model

    @property
    def ask(self) -> Ask:
        """x."""
        return Ask(self.text, self.product)

    @property
    def corrupted(self) -> Ask:
        """x~; its picture is known to the model only after show_masks."""
        return Ask(
            self.corrupted_text, ("masked", self.product, self.mask_seed) if self.how == "image" else self.product
        )


def draw(v: PromptModel, shop: Shop, h: Hyper, seed: int, epoch: int) -> tuple[list[Sample], dict[str, Any]]:
    """Samples of an epoch and how many products gave none, by reason. Everything random follows from seed and epoch."""
    rng = random.Random(f"epoch/{seed}/{epoch}")
    products = [rng.choice(shop.train) for _ in range(h.products)]
    if len(shop.train) >= h.products:
        products = rng.sample(shop.train, h.products)
    instructions = [rng.choice(v.prompting.instructions) for _ in products]
    asks = [Ask(question(p.caption, i), p.id) for p, i in zip(products, instructions, strict=True)]
    drawn = v.sample(asks * h.descriptions, derive(seed, "sample", epoch))
    n, seeds = len(asks), [rng.randrange(1 << 30) for _ in asks]
    texts = [list(dict.fromkeys(drawn[i::n])) for i in range(n)]  # the different ones, in the order drawn
    pictures = _pictures(shop, products, texts, seeds)
    usable = [[t for t in texts[i] if (i, t) in pictures] for i in range(n)]
    pairs = _pairs(shop.reward, products, usable, pictures)
    about = {
        "asked": n,
        "invalid": sum(shop.grammar.parse(t) is None for t in drawn),
        "identical": sum(len(t) < 2 for t in texts),
        "failed": sum(len(u) < 2 <= len(t) for u, t in zip(usable, texts, strict=True)),
    }
    if not pairs:
        raise NoEvidenceError(
            f"epoch {epoch}: no product got two different well-formed descriptions: is the base trained?"
        )
    tau = h.tau if h.tau >= 0 else shop.reward.tau
    judged = _judge(shop.reward, h, products, pairs, pictures)
    out = []
    for (i, a, b), p in zip(pairs, judged.p_left, strict=True):
        if abs(p - 0.5) <= max(tau, ROUNDING):
            continue
        hi, lo = (a, b) if p > 0.5 else (b, a)
        how, other = choose(h.corrupt, rng), other_product(products[i], shop.train, rng)
        corrupted = question(other.caption, instructions[i]) if how == "caption" else asks[i].text
        mask_seed = derive(seed, "mask", epoch, i)
        sure = float(max(p, 1 - p))
        out.append(Sample(products[i].id, asks[i].text, corrupted, how, mask_seed, hi, lo, "", sure))
    about |= {"ties": len(pairs) - len(out), "pairs": len(out)}
    about |= {"swap_consistency": judged.swap_consistency if h.both_orders else None}
    if not out:
        raise NoEvidenceError(f"epoch {epoch}: the reward model abstains on every pair (tau {tau}): lower tau")
    return _exchange(out, rng), about


def _exchange(samples: list[Sample], rng: random.Random) -> list[Sample]:
    """Fills elsewhere. Where x is whole there is nothing to say but y+; a lone product has its own y-."""
    out = []
    for s in samples:
        others = [o.chosen for o in samples if o.product != s.product]
        other = rng.choice(others) if others else s.rejected
        out.append(dataclasses.replace(s, elsewhere=s.chosen if s.how == "none" else other))
    return out


def _pictures(shop: Shop, products: list[Product], texts: list[list[str]], seeds: list[int]) -> dict[Key, np.ndarray]:
    """(position, description) -> picture, of well-formed descriptions that have one to be compared with and that the
    renderer did draw. One product's pictures share the drawing seed: only the prompt differs."""
    valid = [[t for t in ts if shop.grammar.parse(t) is not None] for ts in texts]
    keys = [(i, t) for i, ts in enumerate(valid) if len(ts) > 1 for t in ts]
    images, drawn = shop.renderer.render([Shot(products[i].id, t, seeds[i]) for i, t in keys])
    return {key: image for key, image, ok in zip(keys, images, drawn, strict=True) if ok}


def _pairs(
    reward: PairScorer, products: list[Product], usable: list[list[str]], pictures: dict[Key, np.ndarray]
) -> list[tuple[int, str, str]]:
    """(position, one description, another): of two both, of more the one that is thought best and the worst."""
    many = [(i, t) for i, texts in enumerate(usable) if len(texts) > 2 for t in texts]
    value = _values(reward, products, many, pictures) if many else {}
    out = []
    for i, texts in enumerate(usable):
        if len(texts) == 2:
            out.append((i, *texts))
        elif len(texts) > 2:
            ranked = sorted(texts, key=lambda t: value[i, t])
            out.append((i, ranked[-1], ranked[0]))
    return out


def _values(
    reward: PairScorer,
    products: list[Product],
    keys: list[Key],
    pictures: dict[Key, np.ndarray],
) -> dict[Key, float]:
    """How each picture fares against the others of its product. A model that scores single creatives looks once at
    each; a mere judge of pairs is asked about every pair, in one order: the pair that counts is judged again, in both.
    """
    if hasattr(reward, "scores"):
        scores = reward.scores([products[i].caption for i, _ in keys], np.stack([pictures[k] for k in keys]))
        return dict(zip(keys, scores.tolist(), strict=True))
    value = dict.fromkeys(keys, 0.0)
    pairs = [(a, b) for a, b in itertools.combinations(keys, 2) if a[0] == b[0]]
    left, right = np.stack([pictures[a] for a, _ in pairs]), np.stack([pictures[b] for _, b in pairs])
    p_left = reward.p_left([products[a[0]].caption for a, _ in pairs], left, right)
    for (a, b), p in zip(pairs, p_left, strict=True):
        value[a] += float(p)
        value[b] += float(1 - p)
    return value


def _judge(
    reward: PairScorer,
    h: Hyper,
    products: list[Product],
    pairs: list[tuple[int, str, str]],
    pictures: dict[Key, np.ndarray],
) -> Scored:
    captions = [products[i].caption for i, _, _ in pairs]
    left, right = np.stack([pictures[i, a] for i, a, _ in pairs]), np.stack([pictures[i, b] for i, _, b in pairs])
    if h.both_orders:
        return both_orders(reward, captions, left, right)
    return Scored(reward.p_left(captions, left, right), float("nan"))


def show_masks(v: PromptModel, shop: Shop, h: Hyper, samples: Sequence[Sample]) -> None:
    """Registers the masked pictures of samples; drawn anew from their seeds, a resumed epoch sees the same ones."""
    for s in samples:
        if s.how == "image":
            rng = random.Random(s.mask_seed)
            v.add_image(s.corrupted.image, mask_patches(shop.plain[s.product], rng, h.mask_share, h.mask_patch))


def drop_masks(v: PromptModel, samples: Sequence[Sample]) -> None:
    """Forgets them again."""
    v.drop_images([s.corrupted.image for s in samples if s.how == "image"])
