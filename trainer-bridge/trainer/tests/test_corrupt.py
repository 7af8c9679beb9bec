"""Corruption of the product: what changes, and what must not."""

import random

import numpy as np

from ctrloop_trainer.rounds.corrupt import MASK_GREY, mask_patches, other_product


def test_three_quarters_of_the_patches_are_masked():
    image = np.random.default_rng(0).integers(0, 100, (64, 64, 3)).astype(np.uint8)
    out = mask_patches(image, random.Random(1), 0.75, 8)
    masked = (out.reshape(8, 8, 8, 8, 3) == MASK_GREY).all((1, 3, 4))
    assert masked.sum() == 48
    kept = ~np.repeat(np.repeat(masked, 8, 0), 8, 1)
    assert np.array_equal(out[kept], image[kept])
    assert (image < 100).all()  # the original is untouched


def test_other_product_is_never_the_same(products):
    rng = random.Random(0)
    for p in products:
        for _ in range(20):
            other = other_product(p, products, rng)
            assert other.base != p.base
            assert other.caption != p.caption
