"""Product-centric corruption: x -> x~, everything else untouched.

The answer y+ is not this module's business: it stays the same string on both sides of the PCPO loss. hyper.corrupt
says which x~ a sample gets: kinds that a coin chooses between are joined by "|", several x~ of one sample by ",".
"image|caption" is CAIG's coin; "product,colour" gives every sample two x~.
"""

import random
from collections.abc import Sequence

import numpy as np

from ..data import Product
from ..errors import BadInputError
from ..pictures import VIEW_PX

KINDS = {
    "image": "its picture with most patches masked",
    "caption": "the caption of a product of another department",
    "product": "picture and caption of a product of another department: what decides which scenes suit is gone",
    "colour": "picture and caption of its hue variant: what decides which palettes suit is gone, and nothing else",
    "none": "x itself: a placebo",
}
MASK_GREY = 127  # zero after the processor's normalisation: "nothing there", not "a black thing"


def parse(text: str) -> list[list[str]]:
    """hyper.corrupt as a list of x~, each a list of kinds to choose between; BadInputError for an unknown kind."""
    out = [[k.strip() for k in one.split("|")] for one in text.split(",")]
    unknown = sorted({k for one in out for k in one} - set(KINDS))
    if unknown:
        raise BadInputError(
            f"hyper.corrupt: {text!r} has unknown kinds ({', '.join(map(repr, unknown))}), known are "
            f"{', '.join(KINDS)}; | is a choice, a comma means both"
        )
    return out


def mask_patches(image: np.ndarray, rng: random.Random, share: float, patch: int) -> np.ndarray:
    """A copy with that share of its squares greyed out (CAIG: 75 % of 32 px squares at 512 px). patch is the side of a
    square in a view of VIEW_PX; in a larger view squares are as much larger."""
    out = image.copy()
    patch = max(1, round(patch * image.shape[0] / VIEW_PX))
    cells = [(y, x) for y in range(0, image.shape[0], patch) for x in range(0, image.shape[1], patch)]
    for y, x in rng.sample(cells, round(share * len(cells))):
        out[y : y + patch, x : x + patch] = MASK_GREY
    return out


def other_product(product: Product, products: Sequence[Product], rng: random.Random) -> Product:
    """A product of another department, where there are two, else of another category: its caption contradicts the
    picture. Never the product itself. Within a department, what suits one product suits the other: preferring y+ for
    one of them would teach nothing but names."""
    for attribute in ("department", "category"):
        mine = getattr(product, attribute)
        others = [p for p in products if getattr(p, attribute) != mine and p.base != product.base]
        if others:
            return rng.choice(others)
    raise ValueError("corruption by another product needs products of two categories")


def other_colour(product: Product, products: Sequence[Product], rng: random.Random) -> Product:
    """The product in another colour: one of its hue variants, or, of a grey one, a product of another department."""
    others = [p for p in products if p.base == product.base and p.colour != product.colour]
    return rng.choice(others) if others else other_product(product, products, rng)


def likeness(a: Product, b: Product) -> int:
    """How much of what a background must suit two products share: 0 to 3."""
    return 2 * (a.department == b.department) + (a.colour == b.colour)
