"""Samples of an epoch: who is dropped, who is chosen, what a biased judge can do."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import STUB

from ctrloop_trainer.errors import NoEvidenceError
from ctrloop_trainer.render import Renderer, Shot
from ctrloop_trainer.rounds.draw import draw
from ctrloop_trainer.rounds.settings import Hyper
from ctrloop_trainer.rounds.shop import Shop

TEXTS = (
    "sunlit beach, slate blue tones, golden hour glow, no props",
    "city street, deep teal tones, moody low light, silk ribbon",
    "neon confetti burst, lemon yellow tones, bright studio light, wooden blocks",
    "concert stage, warm amber tones, cool window light, fresh leaves",
)


class Judge:
    """Likes red on the right-hand half of a picture, whoever stands in front."""

    tau = 0.0

    def scores(self, captions, images):
        return images[:, :, 40:, 0].mean((1, 2)) / 50.0

    def p_left(self, captions, left, right):
        return 1 / (1 + np.exp(-(self.scores(captions, left) - self.scores(captions, right))))


class Sided:
    """Prefers whatever is on the left: no opinion at all."""

    tau = 0.0

    def p_left(self, captions, left, right):
        return np.full(len(captions), 0.9)


class Pairwise:
    """Judge without scores of single creatives, as a two-image model is."""

    tau = 0.0

    def p_left(self, captions, left, right):
        return Judge().p_left(captions, left, right)


class Writer:
    """Stands for the prompt model: says text n of every product on its n-th turn."""

    prompting = SimpleNamespace(instructions=("describe a background",))

    def __init__(self, say):
        self.say = say

    def sample(self, asks, seed):
        turn: dict = {}
        out = []
        for a in asks:
            n = turn[a.image] = turn.get(a.image, -1) + 1
            out.append(self.say(a.image, n))
        return out


@pytest.fixture(scope="module")
def make_shop(products, grammar):
    with Renderer(STUB) as renderer:
        train = [p for p in products if not p.holdout]

        def make(judge=None, renderer=renderer):
            return Shop(grammar, train, [p for p in products if p.holdout], {}, renderer, judge or Judge(), None)

        yield make


def hyper(**change):
    return Hyper(**{"products": 8, "descriptions": 2, "tau": 0.0, **change})


def ranked(shop, product, texts, seed=3):
    images, _ = shop.renderer.render([Shot(product, t, seed) for t in texts])
    return [texts[i] for i in np.argsort(Judge().scores([""] * len(texts), images))]


def test_the_better_of_two_is_chosen(make_shop):
    shop = make_shop()
    samples, about = draw(Writer(lambda p, n: TEXTS[n]), shop, hyper(), 1, 1)
    assert about["pairs"] == 8
    for s in samples:
        assert [s.rejected, s.chosen] == ranked(shop, s.product, TEXTS[:2])
        assert 0.5 < s.p <= 1


@pytest.mark.parametrize("judge", [Judge, Pairwise])
def test_of_four_the_best_and_the_worst_make_the_pair(make_shop, judge):
    shop = make_shop(judge())
    samples, _ = draw(Writer(lambda p, n: TEXTS[n]), shop, hyper(descriptions=4), 1, 1)
    assert samples
    for s in samples:
        order = ranked(shop, s.product, TEXTS)
        assert (s.rejected, s.chosen) == (order[0], order[-1])


def test_identical_and_malformed_descriptions_give_no_pair(make_shop):
    shop = make_shop()
    first, second, third = (p.id for p in shop.train[:3])

    def say(product, n):
        if product == first:
            return TEXTS[0]
        if product == second and n == 1:
            return "something, else"
        return TEXTS[n]

    samples, about = draw(Writer(say), shop, hyper(products=len(shop.train)), 1, 1)
    named = {s.product for s in samples}
    assert third in named
    assert not {first, second} & named
    assert (about["identical"], about["failed"], about["invalid"]) == (1, 1, 1)
    assert about["pairs"] == about["asked"] - 2


def test_what_the_renderer_could_not_draw_gives_no_pair(make_shop):
    inner = make_shop().renderer

    class Failing:
        def render(self, shots):
            images, ok = inner.render(shots)
            return images, ok & np.array([s.text != TEXTS[1] or s.product != "p-0" for s in shots])

    shop = make_shop(renderer=Failing())
    samples, about = draw(Writer(lambda p, n: TEXTS[n]), shop, hyper(products=len(shop.train)), 1, 1)
    assert "p-0" not in {s.product for s in samples}
    assert about["failed"] == 1


def test_both_pictures_of_a_pair_are_drawn_with_the_same_seed(make_shop):
    inner, asked = make_shop().renderer, []

    class Spy:
        def render(self, shots):
            asked.extend(shots)
            return inner.render(shots)

    draw(Writer(lambda p, n: TEXTS[n]), make_shop(renderer=Spy()), hyper(), 1, 1)
    seeds: dict = {}
    for s in asked:
        seeds.setdefault(s.product, set()).add(s.seed)
    assert len(asked) == 16
    assert all(len(x) == 1 for x in seeds.values())
    assert len({s.seed for s in asked}) == len(seeds)


def test_a_preferred_side_is_no_preference(make_shop):
    """In both orders a judge with a favourite side has said nothing; asked once, its side becomes the label."""
    shop, writer = make_shop(Sided()), Writer(lambda p, n: TEXTS[n])
    with pytest.raises(NoEvidenceError, match="abstains"):
        draw(writer, shop, hyper(), 1, 1)
    samples, about = draw(writer, shop, hyper(both_orders=False), 1, 1)
    assert {s.chosen for s in samples} == {TEXTS[0]}
    assert about["swap_consistency"] is None


def test_close_calls_are_dropped(make_shop):
    shop = make_shop()
    many = Writer(lambda p, n: TEXTS[2 * (int(p[2]) % 2) + n])  # two kinds of pair, one of them closer
    sure = draw(many, shop, hyper(), 1, 1)[0]
    margins = sorted({s.p - 0.5 for s in sure})
    assert len(margins) == 2
    tau = sum(margins) / 2
    kept, about = draw(many, shop, hyper(tau=tau), 1, 1)
    assert 0 < len(kept) < len(sure)
    assert about["ties"] == len(sure) - len(kept)
    assert all(s.p - 0.5 > tau for s in kept)


def test_samples_follow_from_seed_and_epoch(make_shop):
    shop, writer = make_shop(), Writer(lambda p, n: TEXTS[n])
    once = [dataclasses.asdict(s) for s in draw(writer, shop, hyper(), 1, 1)[0]]
    assert once == [dataclasses.asdict(s) for s in draw(writer, shop, hyper(), 1, 1)[0]]
    assert once != [dataclasses.asdict(s) for s in draw(writer, shop, hyper(), 1, 2)[0]]


def test_held_out_products_are_never_drawn(make_shop):
    shop = make_shop()
    samples, _ = draw(Writer(lambda p, n: TEXTS[n % 4]), shop, hyper(products=100), 1, 1)
    assert not {s.product for s in samples} & {p.id for p in shop.held}


def test_a_base_that_says_one_thing_only_is_refused(make_shop):
    with pytest.raises(NoEvidenceError, match="no product got two"):
        draw(Writer(lambda p, n: TEXTS[0]), make_shop(), hyper(), 1, 1)
