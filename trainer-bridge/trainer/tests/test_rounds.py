"""Preference rounds on the shipped base in miniature: what a sample is, what a job leaves, that it repeats."""

import json

import numpy as np
import pytest
from conftest import STUB, WEIGHTS

from ctrloop_trainer import errors
from ctrloop_trainer import spec as specs
from ctrloop_trainer.digest import dir_digest
from ctrloop_trainer.progress import Progress
from ctrloop_trainer.render import Renderer
from ctrloop_trainer.rounds import train as rounds

TINY = {"epochs": 2, "products": 12, "held_samples": 2, "probes": 2, "tau": 0.0}


@pytest.fixture
def rewards(make_data, make_spec, run_job, tmp_path):
    """A reward model and a referee, trained for a moment: their opinion is arbitrary, and firm."""
    data = make_data(lambda x: 0.3 * np.sin(x.mean()), per=4).write(tmp_path / "data")
    out = []
    for name in ("reward", "referee"):
        hyper = {
            "epochs": 2,
            "heads": 1,
            "baselines": False,
            "learning_rates": "0.003",
            "referee": name == "referee",
            "trunk": str(WEIGHTS / f"{name}-trunk"),
        }
        code, folder = run_job(make_spec("reward", hyper, dataset=str(data)), name)
        assert code == errors.OK
        out.append(str(folder / "model"))
    return out


@pytest.fixture
def rounds_spec(make_spec, rewards):
    base = WEIGHTS / "prompt-base"
    return make_spec(
        "rounds",
        TINY,
        base=str(base),
        base_digest=dir_digest(base),
        reward_model=rewards[0],
        referee_model=rewards[1],
    )


@pytest.fixture
def miniature(rounds_spec, tmp_path):
    """Rounds, started, with its base model."""
    spec = specs.check(rounds_spec)
    (tmp_path / "r").mkdir()
    with Renderer(STUB) as renderer:
        r = rounds.Rounds(
            spec, specs.hyper(rounds.Hyper, spec.hyper), tmp_path / "r", renderer, Progress(tmp_path / "r")
        )
        r.start()
        yield r


def test_the_product_is_the_sole_variable(miniature):
    """PCPO's property on the built samples: y+ is the same, and either the picture or the caption changed."""
    v = miniature.load_base()
    samples, about = miniature.samples(v, 1)
    products = {p.id: p for p in miniature.train}
    assert about["pairs"] == len(samples) > 4
    assert {s.how for s in samples} == {"mask", "caption"}
    for s in samples:
        p = products[s.product]
        assert s.chosen != s.rejected
        assert miniature.grammar.parse(s.chosen)
        assert miniature.grammar.parse(s.rejected)
        assert p.caption in s.ask.text
        instruction = s.ask.text.removeprefix(p.caption)
        assert s.corrupted.text.endswith(instruction)
        if s.how == "mask":
            assert s.corrupted.text == s.ask.text
            assert not np.array_equal(v.pixels([s.corrupted.image]), v.pixels([s.ask.image]))
        else:
            assert s.corrupted.image == s.ask.image
            assert s.corrupted.text != s.ask.text
            caption = s.corrupted.text.removesuffix(instruction)
            others = [q for q in miniature.train if q.caption == caption]
            assert others
            assert all(q.base != p.base for q in others)


def test_rows_of_the_batch_are_chosen_rejected_and_chosen_again(miniature):
    v = miniature.load_base()
    samples, _ = miniature.samples(v, 1)
    seen = {}

    def spy(asks, answers):
        seen["asks"], seen["answers"] = list(asks), list(answers)
        return type(v).token_logps(v, asks, answers)

    v.token_logps = spy
    miniature._logps(v, samples[:3], True)
    assert seen["answers"] == [s.chosen for s in samples[:3]] + [s.rejected for s in samples[:3]] + [
        s.chosen for s in samples[:3]
    ]
    assert seen["asks"] == [s.ask for s in samples[:3]] * 2 + [s.corrupted for s in samples[:3]]


def test_a_fresh_adapter_is_the_base(miniature):
    v = miniature.adapted()
    samples, _ = miniature.samples(v, 1)
    reference = miniature._reference(v, samples[:4], True)
    mine = miniature._logps(v, samples[:4], True)[0]
    assert np.allclose(mine.detach().numpy(), reference.numpy(), atol=1e-4)
    names = [n for n, p in v.model.named_parameters() if p.requires_grad]
    assert names
    assert all("language_model" in n and "lora_" in n for n in names)


def test_a_job_leaves_its_artifacts_and_repeats(rounds_spec, run_job):
    code, out = run_job(rounds_spec, "a")
    assert code == errors.OK
    m = json.loads((out / "metrics.json").read_text())
    assert [(e["arm"], e["epoch"]) for e in m["epochs"]] == [("dpo", 1), ("dpo", 2), ("pcpo", 1), ("pcpo", 2)]
    assert m["arm"] == "pcpo"
    assert {"name", "value", "threshold", "passed", "why"} == set(m["gates"][0])
    assert (
        m["adapter_digest"] == dir_digest(out / "adapter") == dir_digest(out / "arms" / "pcpo" / f"epoch-{m['epoch']}")
    )
    assert {p.name for p in (out / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "prompt-base"
    assert config["target_modules"] == sorted(config["target_modules"])  # a set's order would change the digest
    assert list(config) == sorted(config)
    samples = [json.loads(x) for x in (out / "samples.jsonl").read_text().splitlines()]
    assert {(s["arm"], s["epoch"]) for s in samples} == {(a, e) for a in ("dpo", "pcpo") for e in (0, 1, 2)}
    assert len(samples) == 6 * 4 * 2
    probe = json.loads((out / "probe.json").read_text())
    assert probe["answer"] != probe["base_answer"] or probe["logprobs"] != probe["base_logprobs"]
    lineage = json.loads((out / "lineage.json").read_text())
    assert lineage["base_digest"] == rounds_spec["base_digest"]
    assert set(lineage["parents"]) == {"base", "reward_model", "referee_model"}
    _, again = run_job(rounds_spec, "b")
    assert dir_digest(again / "adapter") == m["adapter_digest"]
    assert (again / "samples.jsonl").read_text() == (out / "samples.jsonl").read_text()


def test_an_interrupted_job_goes_on_where_it_was(rounds_spec, run_job, monkeypatch):
    spec = {**rounds_spec, "hyper": {**TINY, "arms": "pcpo"}}
    code, whole = run_job(spec, "whole")
    assert code == errors.OK
    keep, calls = rounds.Rounds._keep, []

    def keep_then_stop(self, *args):
        keep(self, *args)
        calls.append(args[2])
        if len(calls) == 1:
            self.progress._stop = True  # what the SIGTERM handler does

    monkeypatch.setattr(rounds.Rounds, "_keep", keep_then_stop)
    code, out = run_job(spec, "cut")
    assert code == errors.INTERRUPTED
    assert not (out / "adapter").exists()
    code, out = run_job(spec, "cut")
    assert code == errors.OK
    assert calls == [1, 2]  # epoch 1 was not trained again
    assert dir_digest(out / "arms" / "pcpo" / "epoch-2") == dir_digest(whole / "arms" / "pcpo" / "epoch-2")
    other = {**spec, "seed": 6}
    assert run_job(other, "cut")[0] == errors.BAD_INPUT


def test_a_loss_that_is_not_finite_ends_the_job(rounds_spec, run_job, monkeypatch):
    import torch

    from ctrloop_trainer import losses

    monkeypatch.setattr(losses, "dpo", lambda *a: torch.tensor(float("nan"), requires_grad=True))
    assert run_job(rounds_spec)[0] == errors.DIVERGED
