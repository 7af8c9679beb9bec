"""Protocol B: places, information, and who stands in the line-up."""

import math

import numpy as np
import pytest

from ctrloop_trainer.rounds import relevance


def test_the_own_product_is_first_and_never_its_own_distractor(products):
    ups = relevance.line_ups(products * 3, products, 7)
    for p, up in zip(products * 3, ups, strict=True):
        assert up[0] is p
        assert len(up) == 1 + relevance.DISTRACTORS == len({q.id for q in up})
        assert all(q.base != p.base for q in up[1:])
    assert ups == relevance.line_ups(products * 3, products, 7)
    assert ups != relevance.line_ups(products * 3, products, 8)


def test_places_count_who_is_likelier():
    logp = np.array([[-1.0, -2.0, -3.0], [-2.0, -1.0, -3.0], [-3.0, -1.0, -2.0], [-1.0, -1.0, -2.0]])
    assert relevance.ranks(logp).tolist() == [1, 2, 3, 1.5]


def test_information_is_zero_by_chance_and_log_n_at_most():
    assert relevance.information(np.full((5, 10), -7.0)) == pytest.approx(0)
    sure = np.full((5, 10), -100.0)
    sure[:, 0] = 0
    assert relevance.information(sure) == pytest.approx(math.log(10))
    got = relevance.information(np.log(np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])) - 40)
    assert got == pytest.approx((math.log(0.6) + math.log(0.2)) / 2 + math.log(3))


def test_figures_count_malformed_answers_as_misses():
    own = np.array([[0.0, -1, -2], [0.0, -1, -2], [-3.0, -1, -2], [0.0, -1, -2]])
    base = np.array([[0.0, -1, -2], [-3.0, -1, -2], [-3.0, -1, -2], [0.0, -1, -2]])
    f = relevance.figures(own, base, np.array([True, True, True, False]))
    assert f["matching_b"] == 0.5
    assert f["matching_b_valid"] == pytest.approx(2 / 3)
    assert f["matching_b_base"] == 0.25
    assert f["reciprocal_rank"] == pytest.approx((1 + 1 + 1 / 3) / 4)
    assert f["matching_b_ratio"] == 0.25  # only the second row's own product gained
    assert f["information_base"] < f["information"]
    assert relevance.figures(own, own, np.ones(4, bool))["matching_b_ratio"] == pytest.approx(1 / 3)


def test_the_matrix_asks_every_product_about_every_text():
    import torch

    def score(asks, texts):
        return torch.tensor([float(a * 10 + len(t)) for a, t in zip(asks, texts, strict=True)])

    got = relevance.matrix(score, [[1, 2, 3], [4, 5, 6]], ["a", "bb"], batch=2)
    assert got.tolist() == [[11, 21, 31], [42, 52, 62]]
