"""Losses against their formulas on hand-made log-probabilities, and gradients against finite differences."""

import math

import pytest
import torch

from ctrloop_trainer import losses
from ctrloop_trainer.rounds import learn, settings

T = torch.float64


def t(*values):
    return torch.tensor(values, dtype=T)


def sigmoid_loss(x):
    return -math.log(1 / (1 + math.exp(-x)))


CHOSEN, REJECTED, CORRUPTED = (-5.0, -7.0), (-6.0, -6.5), (-9.0, -7.2)
REF_CHOSEN, REF_REJECTED, REF_CORRUPTED = (-5.5, -6.0), (-5.0, -8.0), (-8.0, -7.0)


def test_dpo_is_the_formula():
    want = [sigmoid_loss(0.3 * ((-5 + 5.5) - (-6 + 5))), sigmoid_loss(0.3 * ((-7 + 6) - (-6.5 + 8)))]
    got = losses.dpo(t(*CHOSEN), t(*REJECTED), t(*REF_CHOSEN), t(*REF_REJECTED), 0.3)
    assert got.item() == pytest.approx(sum(want) / 2)


def test_soft_dpo_is_the_cross_entropy_with_the_judges_probability():
    z = 0.3 * ((-5 + 5.5) - (-6 + 5))
    want = 0.8 * sigmoid_loss(z) + 0.2 * sigmoid_loss(-z)
    got = losses.dpo(t(-5), t(-6), t(-5.5), t(-5), 0.3, t(0.8))
    assert got.item() == pytest.approx(want)
    sure = losses.dpo(t(*CHOSEN), t(*REJECTED), t(*REF_CHOSEN), t(*REF_REJECTED), 0.3, t(1, 1))
    assert sure.item() == pytest.approx(
        losses.dpo(t(*CHOSEN), t(*REJECTED), t(*REF_CHOSEN), t(*REF_REJECTED), 0.3).item()
    )


def test_pcpo_is_the_formula():
    want = [sigmoid_loss(0.7 * ((-5 + 5.5) - (-9 + 8))), sigmoid_loss(0.7 * ((-7 + 6) - (-7.2 + 7)))]
    got = losses.pcpo(t(*CHOSEN), t(*CORRUPTED), t(*REF_CHOSEN), t(*REF_CORRUPTED), 0.7)
    assert got.item() == pytest.approx(sum(want) / 2)


def test_beta_of_pcpo_is_used():
    a = losses.pcpo(t(*CHOSEN), t(*CORRUPTED), t(*REF_CHOSEN), t(*REF_CORRUPTED), 0.1)
    b = losses.pcpo(t(*CHOSEN), t(*CORRUPTED), t(*REF_CHOSEN), t(*REF_CORRUPTED), 0.9)
    assert abs(a.item() - b.item()) > 0.003


def test_at_the_reference_preference_losses_are_log_two():
    assert losses.dpo(t(-3), t(-4), t(-3), t(-4), 0.5).item() == pytest.approx(math.log(2))
    assert losses.pcpo(t(-3), t(-8), t(-3), t(-8), 0.5).item() == pytest.approx(math.log(2))
    assert losses.anchor(t(-3), t(-3), 0.5).item() == pytest.approx(math.log(2))


def test_anchor_is_the_formula():
    want = (sigmoid_loss(0.5 * 0.5) + sigmoid_loss(0.5 * -1)) / 2
    assert losses.anchor(t(*CHOSEN), t(*REF_CHOSEN), 0.5).item() == pytest.approx(want)


def test_token_nll_weighs_answers_alike():
    assert losses.token_nll(t(-6, -4), t(3, 4)).item() == pytest.approx((2 + 1) / 2)


def test_pair_loss_is_weighted_cross_entropy():
    got = losses.weighted_pair(t(1.0, 0.2), t(0.5, 1.0), torch.tensor([True, True]), t(0.9, 0.1))
    want = (0.9 * sigmoid_loss(0.5) + 0.1 * sigmoid_loss(-0.8)) / 1.0
    assert got.item() == pytest.approx(want)


def test_pair_loss_equals_two_logit_softmax():
    left, right = t(0.3, -1.0), t(-0.4, 0.6)
    two = torch.nn.functional.cross_entropy(torch.stack([left, right], 1), torch.tensor([0, 1]))
    got = losses.weighted_pair(left, right, torch.tensor([True, False]), t(1, 1))
    assert got.item() == pytest.approx(two.item())


def test_two_head_adds_half_the_squared_error():
    scores, rates, target = (t(0.4), t(0.1)), (t(0.5), t(-1.0)), (t(1.5), t(0.0))
    wins, weight = torch.tensor([True]), t(1.0)
    want = sigmoid_loss(0.3) + 0.5 * (1.0 + 1.0) / 2
    assert losses.two_head(scores, rates, target, wins, weight).item() == pytest.approx(want)


def test_listwise_is_cross_entropy_of_softmaxes():
    scores, targets = t(0.0, 1.0), t(2.0, 0.0)
    p = math.exp(2) / (math.exp(2) + 1)
    log_q = (-math.log(1 + math.e), 1 - math.log(1 + math.e))
    want = -(p * log_q[0] + (1 - p) * log_q[1])
    assert losses.listwise(scores, targets, torch.ones(2, dtype=T)).item() == pytest.approx(want)


def case_dpo(x):
    return losses.dpo(x[:2], x[2:4], t(*REF_CHOSEN), t(*REF_REJECTED), 0.3)


def case_pcpo(x):
    return losses.pcpo(x[:2], x[2:4], t(*REF_CHOSEN), t(*REF_CORRUPTED), 0.3)


def case_anchor(x):
    return losses.anchor(x, t(*REF_CHOSEN, *REF_CHOSEN), 0.3)


def case_nll(x):
    return losses.token_nll(x, t(3, 4, 5, 6))


def case_two_head(x):
    wins, weight = torch.tensor([True]), t(0.7)
    return losses.two_head((x[0:1], x[1:2]), (x[2:3], x[3:4]), (t(0.5), t(-0.5)), wins, weight)


def case_listwise(x):
    return losses.listwise(x, t(3, 1, 2, 0), t(1, 2, 1, 3))


def case_soft_dpo(x):
    return losses.dpo(x[:2], x[2:4], t(*REF_CHOSEN), t(*REF_REJECTED), 0.3, t(0.7, 0.9))


def case_weighted_pair(x):
    return losses.weighted_pair(x[:2], x[2:4], torch.tensor([True, False]), t(0.9, 0.2))


def rounds_loss(x, **change):
    weights = {"w_anchor": 0.5, "w_nll": 0.7, "w_pcpo": 2.0, "beta": 0.3, "beta_pcpo": 0.6, "w_form": 0.9}
    ref = torch.stack([t(-5.5), t(-6.0), t(-8.0), t(-4.0)])
    length = torch.stack([t(3), t(4), t(3), t(5)])
    return learn.loss_of(x[:, None], ref, length, t(0.8), settings.Hyper(**{**weights, **change}))


def case_rounds(x):
    return rounds_loss(x)[0]


def case_soft_rounds(x):
    return rounds_loss(x, soft_labels=True)[0]


def test_several_corruptions_are_averaged():
    """Rows: y+|x, y-|x, y+ under both x~, then the other answer under both."""
    h = settings.Hyper(w_nll=0.0, w_dpo=0.0, w_pcpo=2.0, beta_pcpo=0.6, w_form=0.9)
    x, ref = t(-5, -6.2, -9, -7, -8, -4), t(-5.5, -6.0, -8.0, -8.0, -4.0, -4.0)
    loss, parts = learn.loss_of(x[:, None], ref[:, None], t(3, 4, 3, 3, 5, 2)[:, None], t(0.8), h)
    assert parts["pcpo"] == pytest.approx((sigmoid_loss(0.6 * (0.5 - -1.0)) + sigmoid_loss(0.6 * (0.5 - 1.0))) / 2)
    assert parts["form"] == pytest.approx((8 / 5 + 4 / 2) / 2)
    assert parts["corrupted"] == pytest.approx(0.0)
    assert loss.item() == pytest.approx(2.0 * parts["pcpo"] + 0.9 * parts["form"])


def test_the_rounds_loss_is_the_weighted_sum():
    x = t(-5, -6.2, -9, -8)
    want = {
        "dpo": sigmoid_loss(0.3 * (0.5 - -0.2)),
        "pcpo": sigmoid_loss(0.6 * (0.5 - -1.0)),
        "anchor": sigmoid_loss(0.3 * 0.5),
        "nll": 5 / 3,
        "form": 8 / 5,
    }
    loss, parts = rounds_loss(x)
    for name, value in want.items():
        assert parts[name] == pytest.approx(value), name
    weights = {"dpo": 1, "pcpo": 2, "anchor": 0.5, "nll": 0.7, "form": 0.9}
    assert loss.item() == pytest.approx(sum(weights[k] * v for k, v in want.items()))
    assert (parts["chosen"], parts["rejected"], parts["corrupted"]) == pytest.approx((0.5, -0.2, -1.0))


@pytest.mark.parametrize("term", ["dpo", "pcpo", "anchor", "nll", "form"])
def test_every_weight_is_used(term):
    x = t(-5, -6.2, -9, -8)
    more, less = rounds_loss(x, **{f"w_{term}": 3.0})[0], rounds_loss(x, **{f"w_{term}": 1.0})[0]
    assert more.item() - less.item() == pytest.approx(2 * rounds_loss(x)[1][term])


def test_without_the_third_row_there_is_no_pcpo():
    h = settings.Hyper(w_nll=0.0)
    loss, parts = learn.loss_of(torch.stack([t(-5), t(-6)]), torch.stack([t(-5), t(-6)]), t(3, 4)[:, None], t(1), h)
    assert "pcpo" not in parts
    assert loss.item() == pytest.approx(math.log(2))


CASES = [case_dpo, case_soft_dpo, case_pcpo, case_anchor, case_nll, case_two_head, case_listwise]
CASES += [case_weighted_pair, case_rounds, case_soft_rounds]


@pytest.mark.parametrize("loss", CASES)
def test_gradients_are_finite_differences(loss):
    x = t(-5.0, -7.0, -6.2, -6.9).requires_grad_()
    loss(x).backward()
    for i in range(4):
        step = torch.zeros(4, dtype=T)
        step[i] = 1e-5
        numeric = (loss(x.detach() + step) - loss(x.detach() - step)).item() / 2e-5
        assert x.grad[i].item() == pytest.approx(numeric, abs=1e-7)
