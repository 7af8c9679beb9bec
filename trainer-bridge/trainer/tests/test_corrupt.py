"""Corruption of the product: what changes, and what must not."""

import dataclasses
import random

import numpy as np
import pytest

from ctrloop_trainer.errors import BadInputError
from ctrloop_trainer.rounds.corrupt import MASK_GREY, likeness, mask_patches, other_colour, other_product, parse


def test_three_quarters_of_the_patches_are_masked():
    image = np.random.default_rng(0).integers(0, 100, (64, 64, 3)).astype(np.uint8)
    out = mask_patches(image, random.Random(1), 0.75, 8)
    masked = (out.reshape(8, 8, 8, 8, 3) == MASK_GREY).all((1, 3, 4))
    assert masked.sum() == 48
    kept = ~np.repeat(np.repeat(masked, 8, 0), 8, 1)
    assert np.array_equal(out[kept], image[kept])
    assert (image < 100).all()  # the original is untouched


def test_other_product_is_of_another_department(products):
    rng = random.Random(0)
    for p in products:
        for _ in range(20):
            other = other_product(p, products, rng)
            assert other.base != p.base
            assert other.department != p.department


def test_in_a_shop_of_one_department_the_category_tells_products_apart(products):
    rng = random.Random(0)
    shop = [dataclasses.replace(p, department="all", category=p.department) for p in products]
    for p in shop:
        assert other_product(p, shop, rng).category != p.category
    with pytest.raises(ValueError, match="two categories"):
        other_product(shop[0], [p for p in shop if p.category == shop[0].category], rng)


def test_other_colour_is_the_same_product(products):
    rng = random.Random(0)
    for p in products:
        other = other_colour(p, products, rng)
        assert other.base == p.base
        assert other.colour != p.colour
    grey = [dataclasses.replace(p, colour="grey") for p in products]  # a hue means nothing here
    assert other_colour(grey[0], grey, rng).department != grey[0].department


def test_likeness_puts_the_department_first(products):
    p = products[0]
    assert likeness(p, p) == 3
    assert likeness(p, dataclasses.replace(p, colour="other")) == 2
    assert likeness(p, dataclasses.replace(p, department="other")) == 1


def test_bars_are_choices_and_commas_are_not():
    assert parse("image|caption") == [["image", "caption"]]
    assert parse("product, colour") == [["product"], ["colour"]]
    for text in ("", "coin", "product,", "image|"):
        with pytest.raises(BadInputError, match="unknown kinds"):
            parse(text)
