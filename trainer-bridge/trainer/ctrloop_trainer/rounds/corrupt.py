"""Product-centric corruption: x -> x~, everything else untouched.

A coin per sample: three quarters of the product picture's patches masked, or the caption of a *different* product.
The answer y+ is not this module's business: it stays the same string on both sides of the PCPO loss.
"""

import random
from collections.abc import Sequence

import numpy as np

from ..data import Product

KINDS = ("coin", "image", "caption", "none")  # hyper.corrupt; of a sample, one of the last three
MASK_GREY = 127  # zero after the processor's normalisation: "nothing there", not "a black thing"


def choose(kind: str, rng: random.Random) -> str:
    """How one sample is corrupted under hyper.corrupt. The coin is thrown for every kind, so that arms that differ
    in the kind alone draw the rest of their randomness alike."""
    coin = "image" if rng.random() < 0.5 else "caption"
    return coin if kind == "coin" else kind


def mask_patches(image: np.ndarray, rng: random.Random, share: float, patch: int) -> np.ndarray:
    """A copy with that share of its patch x patch squares greyed out (CAIG: 75 % of 32 px squares at 512 px)."""
    out = image.copy()
    cells = [(y, x) for y in range(0, image.shape[0], patch) for x in range(0, image.shape[1], patch)]
    for y, x in rng.sample(cells, round(share * len(cells))):
        out[y : y + patch, x : x + patch] = MASK_GREY
    return out


def other_product(product: Product, products: Sequence[Product], rng: random.Random) -> Product:
    """A product of another category: its caption contradicts the picture. Never the product itself."""
    others = [p for p in products if p.category != product.category and p.base != product.base]
    if not others:
        raise ValueError("corruption by caption needs products of two categories")
    return rng.choice(others)
