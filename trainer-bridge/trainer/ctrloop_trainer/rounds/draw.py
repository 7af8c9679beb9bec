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
from . import corrupt
from .settings import Hyper
from .shop import Shop

ROUNDING = 1e-6  # (0.9 + 1 - 0.9) / 2 is not 0.5: a judge without an opinion must not get one from the last bit
Key = tuple[int, str]  # position of a product in the epoch, description


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """An x~."""

    how: str  # one of corrupt.KINDS
    text: str  # the question about x~
    product: str  # whose picture and caption are in it; of a mask, the sample's own
    mask_seed: int  # of the picture, where how is "image"
    elsewhere: str = ""  # y+ of another product of the epoch, as like x~'s as there is: something to say about x~

    @property
    def ask(self) -> Ask:
        """x~; a masked picture is known to the model only after show_masks."""
        return Ask(self.text, ("masked", self.product, self.mask_seed) if self.how == "image" else self.product)


@dataclasses.dataclass(frozen=True)
class Sample:
    """x, x~, y+ and y- of one product; plain values only, so that a checkpoint can hold it."""

    product: str
    text: str  # the question about x
    chosen: str
    rejected: str
    p: float  # of the chosen, by the reward model
    corrupted: tuple[Corrupted, ...]  # one or more

    @property
    def ask(self) -> Ask:
        """x."""
        return Ask(self.text, self.product)

    @staticmethod
    def restored(raw: dict[str, Any]) -> "Sample":
        """The inverse of dataclasses.asdict."""
        return Sample(**{**raw, "corrupted": tuple(Corrupted(**c) for c in raw["corrupted"])})


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
    out, at = [], []
    for (i, a, b), p in zip(pairs, judged.p_left, strict=True):
        if abs(p - 0.5) <= max(tau, ROUNDING):
            continue
        hi, lo = (a, b) if p > 0.5 else (b, a)
        out.append(Sample(products[i].id, asks[i].text, hi, lo, float(max(p, 1 - p)), ()))
        at.append(i)
    about |= {"ties": len(pairs) - len(out), "pairs": len(out)}
    about |= {"swap_consistency": judged.swap_consistency if h.both_orders else None}
    if not out:
        raise NoEvidenceError(f"epoch {epoch}: the reward model abstains on every pair (tau {tau}): lower tau")
    wanted = corrupt.parse(h.corrupt)
    said = [(products[i], s.chosen) for i, s in zip(at, out, strict=True)]
    for n, (i, s) in enumerate(zip(at, out, strict=True)):
        mask_seed = derive(seed, "mask", epoch, i)
        each = [_corrupted(shop, products[i], instructions[i], rng.choice(one), mask_seed, rng) for one in wanted]
        out[n] = dataclasses.replace(s, corrupted=tuple(_fill(c, x, products[i], s, said, rng) for c, x in each))
    return out, about


def _corrupted(
    shop: Shop, product: Product, instruction: str, how: str, mask_seed: int, rng: random.Random
) -> tuple[Corrupted, Product]:
    """An x~ without elsewhere, and the product that it is about."""
    if how in ("image", "none"):
        return Corrupted(how, question(product.caption, instruction), product.id, mask_seed), product
    pick = corrupt.other_colour if how == "colour" else corrupt.other_product
    other = pick(product, shop.train, rng)
    shown = product if how == "caption" else other
    return Corrupted(how, question(other.caption, instruction), shown.id, mask_seed), other


def _fill(
    c: Corrupted, about: Product, product: Product, s: Sample, said: list[tuple[Product, str]], rng: random.Random
) -> Corrupted:
    """Fills elsewhere: y+ of the product that is most like the one that x~ is about. A random one would teach that
    x~, which may well be another product as it is, goes with anything. Where x is whole there is nothing to say but y+;
    a lone product has its own y-."""
    if c.how == "none":
        return dataclasses.replace(c, elsewhere=s.chosen)
    others = [(corrupt.likeness(p, about), text) for p, text in said if p.base != product.base]
    most = max((n for n, _ in others), default=0)
    texts = [text for n, text in others if n == most]
    return dataclasses.replace(c, elsewhere=rng.choice(texts) if texts else s.rejected)


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
    for c in _masked(samples):
        mask = corrupt.mask_patches(shop.plain[c.product], random.Random(c.mask_seed), h.mask_share, h.mask_patch)
        v.add_image(c.ask.image, mask)


def drop_masks(v: PromptModel, samples: Sequence[Sample]) -> None:
    """Forgets them again."""
    v.drop_images([c.ask.image for c in _masked(samples)])


def _masked(samples: Sequence[Sample]) -> list[Corrupted]:
    return [c for s in samples for c in s.corrupted if c.how == "image"]
