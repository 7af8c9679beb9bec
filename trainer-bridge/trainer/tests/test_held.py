"""What gates and reports are measured on, and catalogues in which nobody says what suits."""

import json

import numpy as np
import pytest

from ctrloop_trainer.data import load_catalogue
from ctrloop_trainer.errors import BadInputError
from ctrloop_trainer.matching import text_figures
from ctrloop_trainer.rounds.held import FIRST_SEED, halves, log_odds_over


def test_gates_and_report_have_different_products(products):
    held = [p for p in products if p.holdout and not p.is_variant]
    a, b = halves(held)
    assert {p.id for p in a} | {p.id for p in b} == {p.id for p in held}
    assert not {p.id for p in a} & {p.id for p in b}
    assert abs(len(a) - len(b)) <= 1
    assert halves(held[::-1]) == (a, b)  # the order of the catalogue decides nothing
    assert FIRST_SEED["held"] != FIRST_SEED["report"]


def test_both_halves_have_the_same_departments(products):
    from dataclasses import replace

    many = [replace(p, id=f"{p.id}-{k}") for p in products for k in range(4)]
    a, b = halves(many)
    count = [{d: sum(p.department == d for p in half) for d in {p.department for p in many}} for half in (a, b)]
    assert all(abs(count[0][d] - count[1][d]) <= 1 for d in count[0])


def test_one_held_out_product_is_not_enough(products):
    with pytest.raises(BadInputError, match="hold more out"):
        halves(products[:1])


class Pairwise:
    """Judges pairs only, and prefers the left a little whatever it sees."""

    def p_left(self, captions, left, right):
        z = left.mean((1, 2, 3)) / 50 - right.mean((1, 2, 3)) / 50 + 0.4
        return 1 / (1 + np.exp(-z))


def test_a_judge_of_pairs_has_gains_too():
    dark, light = (np.full((3, 8, 8, 3), v, np.uint8) for v in (50, 150))
    gain = log_odds_over(Pairwise(), ["a"] * 3, light, dark)
    assert np.allclose(gain, -log_odds_over(Pairwise(), ["a"] * 3, dark, light))  # no side is preferred
    assert (gain > 1).all()
    assert np.allclose(log_odds_over(Pairwise(), ["a"] * 3, dark, dark), 0)


@pytest.fixture
def unjudged(shop, tmp_path):
    """The catalogue as a real shop would have it."""
    rows = [json.loads(x) for x in (shop / "catalogue.jsonl").read_text().splitlines()]
    path = tmp_path / "catalogue.jsonl"
    path.write_text(
        "".join(json.dumps({k: v for k, v in r.items() if k not in ("fits", "harmonious")}) + "\n" for r in rows)
    )
    return path


def test_a_catalogue_without_a_judge_is_read_and_figures_say_so(unjudged, grammar):
    products = load_catalogue(unjudged)
    told = text_figures(products, [grammar.describe((0, 0, 0, 0))] * len(products), grammar)
    assert told["valid"] == 1.0
    assert told["matching"] is None
    assert told["scene_fit"] is None


def test_some_products_with_a_judge_and_some_without_are_refused(unjudged, shop):
    judged = (shop / "catalogue.jsonl").read_text().splitlines()[0]
    unjudged.write_text(judged.replace('"p-0"', '"p-new"') + "\n" + unjudged.read_text())
    with pytest.raises(BadInputError, match="all or none"):
        load_catalogue(unjudged)
