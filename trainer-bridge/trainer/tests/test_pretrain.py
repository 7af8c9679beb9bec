"""The scripts that made the shipped weights still make their like, on a tiny budget."""

import dataclasses
import importlib.util
import json
import sys

import numpy as np
import pytest
from conftest import STUB, WEIGHTS
from safetensors.torch import load_file

from ctrloop_trainer import errors
from ctrloop_trainer.diffusion import train as diffusion_train
from ctrloop_trainer.prompt import pretrain
from ctrloop_trainer.prompt.model import Ask, PromptModel
from ctrloop_trainer.reward import trunk
from ctrloop_trainer.reward.scorer import words
from ctrloop_trainer.reward.trunk import Trunk


def shapes(path):
    return {k: tuple(v.shape) for k, v in load_file(path).items()}


def curve(out, stage):
    rows = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    return [r["loss"] for r in rows if r["stage"] == stage]


@pytest.fixture
def chain():
    """scripts/make_weights.py as a module."""
    found = importlib.util.spec_from_file_location("make_weights", WEIGHTS.parent / "scripts" / "make_weights.py")
    module = importlib.util.module_from_spec(found)
    sys.modules["make_weights"] = module  # dataclasses look themselves up there
    found.loader.exec_module(module)
    yield module
    del sys.modules["make_weights"]


def test_the_script_says_what_made_the_shipped_weights(chain):
    kinds = {"pretrain": pretrain.Hyper, "trunk": trunk.Hyper, "diffusion": diffusion_train.Hyper}
    jobs = {w.name: w for w in chain.CHAIN}
    for w in (jobs[d.name] for d in WEIGHTS.iterdir() if d.name in jobs):
        made = json.loads((WEIGHTS / w.name / "figures.json").read_text())
        assert (made["kind"], made["seed"]) == (w.kind, w.seed)
        assert made["hyper"] == dataclasses.asdict(kinds[w.kind](**w.hyper))
        if w.base:
            assert made["continued_from"]["seed"] == jobs[w.base].seed
            assert made["continued_from"]["hyper"] == dataclasses.asdict(kinds[w.kind](**jobs[w.base].hyper))


def test_prompt_model_is_made_like_the_shipped_one(chain, shop, run_job, tmp_path):
    tiny = {"steps": 50, "batch": 4, "vision_steps": 25, "vision_batch": 4, "pictures": 30, "warm_up": 10}
    tiny |= {"eval_samples": 1, "eval_pictures": 4, "eval_examples": 2}
    jobs = chain.chosen("prompt-base")
    assert [w.name for w in jobs] == ["prompt-base-start", "prompt-base"]
    (tmp_path / "grammar.json").write_bytes((shop / "grammar.json").read_bytes())
    (tmp_path / "catalogue-12.jsonl").write_bytes((shop / "catalogue.jsonl").read_bytes())
    for w, budget in zip(jobs, (tiny, tiny | {"vision_steps": 0, "steps": 5}), strict=True):
        code, out = run_job(chain.specification(w, tmp_path, STUB, 1, budget), w.name)
        assert code == errors.OK
    made, shipped = shapes(out / "model" / "model.safetensors"), shapes(WEIGHTS / "prompt-base" / "model.safetensors")
    words_made, words_shipped = (len(PromptModel.load(d).tokenizer) for d in (out / "model", WEIGHTS / "prompt-base"))
    # The miniature shop has fewer words; everything else is the same shape.
    resized = {k: tuple(words_shipped if n == words_made else n for n in s) for k, s in made.items()}
    assert resized == shipped
    losses = curve(tmp_path / jobs[0].name, "pretrain")
    assert losses[-1] < losses[0] - 0.5
    assert curve(tmp_path / jobs[0].name, "vision")
    assert {p.name for p in (out / "model").iterdir()} == {p.name for p in (WEIGHTS / "prompt-base").iterdir()}


def test_trunk_is_made_like_the_shipped_ones(make_spec, run_job):
    tiny = {"steps": 100, "batch": 8, "pictures": 60, "eval_pictures": 10}
    code, out = run_job(make_spec("trunk", tiny))
    assert code == errors.OK
    for name in ("reward-trunk", "referee-trunk"):
        assert shapes(out / "model" / "trunk.safetensors") == shapes(WEIGHTS / name / "trunk.safetensors")
    losses = curve(out, "trunk")
    assert losses[-1] < losses[0] - 0.5


def test_the_two_eyes_are_different_ones():
    image = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3)).astype(np.uint8)
    a, b = (Trunk.load(WEIGHTS / n).describe(image) for n in ("reward-trunk", "referee-trunk"))
    assert not np.allclose(a, b)


def test_shipped_weights_say_what_made_them():
    for name in ("prompt-base", "reward-trunk", "referee-trunk"):
        made = json.loads((WEIGHTS / name / "figures.json").read_text())
        assert {"command", "seed", "date", "hyper", "figures", "versions"} <= set(made)
    figures = json.loads((WEIGHTS / "prompt-base" / "figures.json").read_text())["figures"]
    assert figures["valid"] >= 0.98
    assert figures["matching"] >= 0.55
    # Rounds explore: the base must not have made up its mind. And PCPO needs a model that looks at the product.
    assert figures["scenes_used"] >= 0.9
    assert figures["distinct"] >= 0.95
    assert figures["looking"]["picture_masked"]["drop"] > 0.3
    assert figures["looking"]["other_caption"]["drop"] > 0.3


def test_shipped_model_answers_in_the_grammar(grammar, products):
    v = PromptModel.load(WEIGHTS / "prompt-base")
    v.add_image("grey", np.full((64, 64, 3), 245, np.uint8))
    asks = [Ask(f"{p.caption}. {v.prompting.instructions[0]}", "grey") for p in products]
    texts = v.sample(asks, seed=1)
    assert sum(grammar.parse(t) is not None for t in texts) >= 0.9 * len(texts)
    assert texts == v.sample(asks, seed=1)


def test_log_probabilities_agree_with_the_model_s_own(products):
    """Padding, position of the answer and the projection over its tokens only: all must change nothing."""
    import torch

    v = PromptModel.load(WEIGHTS / "prompt-base")
    v.add_image("grey", np.full((64, 64, 3), 245, np.uint8))
    answers = ["oak kitchen table, warm amber tones, soft morning light, fresh leaves", "tea"]
    asks = [Ask(f"{products[0].caption}. write", "grey"), Ask("name this product", "grey")]
    together = v.logps(asks, answers)
    for ask, answer, got in zip(asks, answers, together, strict=True):
        prompt, reply = v.prompt_ids(ask.text), v.answer_ids(answer)
        ids = torch.tensor([prompt + reply])
        logits = v.model(input_ids=ids, pixel_values=v.pixels(["grey"])).logits[0]
        logp = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
        want = sum(logp[i, t] for i, t in enumerate(reply))
        assert abs(float(want - got)) < 1e-3


def test_words_of_a_caption():
    assert words("Tea pot, dark blue. kitchen/pots and pans") == [
        "tea",
        "pot",
        "dark",
        "blue",
        "kitchen",
        "pots",
        "and",
        "pans",
    ]
