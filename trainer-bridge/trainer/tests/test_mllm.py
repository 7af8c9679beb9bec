"""The two-image reward model: on miniatures of the big families, and learning on the shipped base."""

import json

import numpy as np
import pytest
import torch
from conftest import WEIGHTS

from ctrloop_trainer import errors
from ctrloop_trainer.data import load_dataset
from ctrloop_trainer.progress import Progress
from ctrloop_trainer.prompt import miniatures
from ctrloop_trainer.prompt.model import Prompting, PromptModel
from ctrloop_trainer.reward import mllm
from ctrloop_trainer.reward.scorer import both_orders

QUICK = {"epochs": 1, "pairs": 16, "batch": 8, "rank": 4}


@pytest.fixture(scope="module", params=("llava-1.6-mistral", "qwen2.5-vl"))
def base(request, tmp_path_factory, products):
    folder = tmp_path_factory.mktemp("base") / request.param
    texts = [p.caption for p in products] + [mllm.QUESTION] * 5
    return miniatures.save(request.param, folder, texts, Prompting(("ask",), 64))


def brightness(picture):
    """Bright right halves (the background) are clicked more."""
    return float(np.clip((picture[:, 32:].mean() - 128) / 15, -1.5, 1.5))


@pytest.fixture
def data(make_data, tmp_path):
    """A small dataset."""
    return load_dataset(make_data(brightness, per=6, names=12).write(tmp_path / "data"))


def train(data, base, out, **hyper):
    creatives, pairs = data
    h = mllm.Hyper(**hyper)
    return mllm.train_mllm(creatives, pairs, np.flatnonzero(~pairs.test), base, h, 3, Progress(out))


def judged(reward, data, rows):
    creatives, pairs = data
    p = pairs.take(rows)
    captions = [creatives.captions[i] for i in p.left]
    return both_orders(reward, captions, creatives.images[p.left], creatives.images[p.right]), p.left_wins


def test_it_trains_saves_and_loads_on_each_family(base, data, tmp_path):
    reward = train(data, base, tmp_path, **QUICK)
    rows = np.arange(6)
    before, _ = judged(reward, data, rows)
    assert np.isfinite(before.p_left).all()
    assert ((before.p_left > 0) & (before.p_left < 1)).all()
    trained = {n for n, p in reward.model.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("language_model" in n and "lora_" in n for n in trained)
    reward.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "reward.json").read_text())["form"] == "mllm"
    again = mllm.MllmReward.load(tmp_path / "model")
    after, _ = judged(again, data, rows)
    assert np.allclose(after.p_left, before.p_left, atol=1e-4)
    assert again.rates(["tea pot. kitchen"] * 2, data[0].images[:2]).shape == (2,)


def with_opinion(v):
    """Heads that are not zero."""
    heads = mllm._heads(v, 0)
    for p in heads.parameters():
        torch.nn.init.normal_(p)
    return heads


def test_both_pictures_their_order_and_the_text_are_seen(base):
    """One row alone and the same in a batch with pictures of another shape and a longer text."""
    v = PromptModel.load(base)
    reward = mllm.MllmReward(v, with_opinion(v))
    rng = np.random.default_rng(0)
    reward.see(["a", "b"], rng.integers(0, 255, (2, 64, 64, 3), dtype=np.uint8))
    reward.see(["wide"], rng.integers(0, 255, (1, 40, 90, 3), dtype=np.uint8))
    with torch.no_grad():
        alone = torch.cat(reward.forward(["tea pot"], ["a"], ["b"]), 1)
        batch = torch.cat(reward.forward(["tea pot", "a much longer caption, pale red"], ["a", "wide"], ["b", "b"]), 1)
        others = {
            "order": reward.forward(["tea pot"], ["b"], ["a"]),
            "left": reward.forward(["tea pot"], ["wide"], ["b"]),
            "right": reward.forward(["tea pot"], ["a"], ["wide"]),
            "text": reward.forward(["tennis ball"], ["a"], ["b"]),
        }
    assert torch.allclose(alone[0], batch[0], atol=1e-4)
    for what, out in others.items():
        assert not torch.allclose(torch.cat(out, 1), alone, atol=1e-4), what


def test_the_loss_does_not_know_sides(data):
    """A batch holds both orders of every pair: mirroring the pairs and their labels changes nothing, mirroring the
    labels alone does."""
    creatives, pairs = data
    v = PromptModel.load(WEIGHTS / "prompt-base")
    rows = np.flatnonzero(~pairs.test)
    fit = mllm._Fit(mllm.MllmReward(v, with_opinion(v)), creatives, pairs, rows, mllm.Hyper(rank=0), 0)
    fit.reward.model.model.eval()
    p, mirrored, wrong = (fit.train.take(np.arange(8)) for _ in range(3))
    mirrored.left, mirrored.right, mirrored.left_wins = p.right, p.left, ~p.left_wins
    wrong.left_wins = ~p.left_wins
    with torch.no_grad():
        assert torch.allclose(fit._loss(mirrored), fit._loss(p), atol=1e-5)
        assert not torch.allclose(fit._loss(wrong), fit._loss(p), atol=1e-3)


def test_the_scale_of_the_rates_makes_the_point_loss_teach(data):
    creatives, _ = data
    everything = np.arange(len(creatives.ids))
    scaled = mllm.targets(creatives, everything, "log_odds")
    assert scaled.mean().abs() < 1e-5
    assert abs(scaled.std().item() - 1) < 0.02
    assert (
        mllm.targets(creatives, everything, "raw").var() < 0.05 * mllm.targets(creatives, everything, "percent").var()
    )
    with pytest.raises(errors.BadInputError, match="log_odds, percent, raw"):
        mllm.targets(creatives, everything, "ctr")


def test_it_learns_what_the_picture_shows(make_data, tmp_path):
    """On the shipped base; one that learned nothing would be near one half. Judged on all pairs, those it learned from
    too (every third of them): what it says of unseen products after seconds of training is a matter of luck."""
    many = load_dataset(make_data(brightness, per=6, names=36).write(tmp_path / "many"))
    hyper = {"epochs": 3, "pairs": 160, "batch": 16, "rank": 0, "lr": 2e-3, "head_lr": 5e-3}
    reward = train(many, WEIGHTS / "prompt-base", tmp_path, **hyper)
    scored, wins = judged(reward, many, np.arange(0, len(many[1]), 3))
    right = np.mean((scored.p_left > 0.5) == wins)
    assert right > 0.58, right


def test_bad_input_is_told(data, base, tmp_path):
    creatives, pairs = data
    v = PromptModel.load(base)
    reward = mllm.MllmReward(v, mllm._heads(v, 0))
    with pytest.raises(errors.BadInputError, match="empty caption"):
        reward.p_left([" "], creatives.images[:1], creatives.images[1:2])
    one = np.array([i for i in range(len(pairs)) if pairs.products[i] == pairs.products[0]])
    with pytest.raises(errors.BadInputError, match="at least 2"):
        mllm.train_mllm(creatives, pairs, one, base, mllm.Hyper(**QUICK), 0, Progress(tmp_path))
    with pytest.raises(errors.BadInputError, match="cannot load"):
        mllm.MllmReward.load(tmp_path)
