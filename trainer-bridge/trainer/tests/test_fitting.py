"""Pre-training that is stopped and started again, on a LoRA, from a folder, and what it refuses."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from conftest import png
from safetensors.torch import load_file

from ctrloop_trainer import errors
from ctrloop_trainer.prompt import fitting
from ctrloop_trainer.prompt.model import PromptModel

SHAPE = {"hidden": 64, "layers": 1, "feed_forward": 64, "vision_hidden": 32, "vision_layers": 1, "vocabulary": 300}
TINY = {"vision_steps": 5, "vision_batch": 4, "steps": 7, "batch": 4, "warm_up": 2, "pictures": 12} | SHAPE
TINY |= {"checkpoint_every": 3, "eval_samples": 1, "eval_pictures": 2, "eval_examples": 1}


def weights(out):
    return load_file(out / "model" / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def resumed(out):
    rows = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    return [(r["stage"], r["resumed_at"]) for r in rows if "resumed_at" in r]


@pytest.fixture
def strike(monkeypatch):
    """strike(stage, step, how): calls how() in the middle of that step, once."""
    real = fitting.check_loss

    def arm(stage: str, step: int, how) -> None:
        left = [1]

        def check(value, where):
            real(value, where)
            if where == f"{stage} step {step}" and left:
                left.pop()
                how()

        monkeypatch.setattr(fitting, "check_loss", check)

    return arm


class Killed(BaseException):
    """Stands for a kill: no handler of the job gets to see it."""


def killed():
    raise Killed


@pytest.fixture(scope="module")
def made(tmp_path_factory, shop):
    """A tiny model made in one go, and the specification that made it."""
    from conftest import STUB

    from ctrloop_trainer import job

    d = tmp_path_factory.mktemp("made")
    files = {"grammar": str(shop / "grammar.json"), "catalogue": str(shop / "catalogue.jsonl")}
    spec = {"kind": "pretrain", "id": "made", "seed": 5, "threads": 1, "renderer": STUB, **files, "hyper": TINY}
    (d / "spec.json").write_text(json.dumps(spec))
    assert job.main([str(d / "spec.json"), "--out", str(d / "out")]) == errors.OK
    return d / "out", spec


@pytest.mark.parametrize(
    ("stage", "step", "goes_on_at"),
    [
        ("vision", 1, []),  # before the first checkpoint: from the start
        ("vision", 4, [("vision", 3)]),
        ("pretrain", 1, [("vision", 5)]),
        ("pretrain", 6, [("pretrain", 6)]),
    ],
)
def test_a_killed_run_ends_with_the_same_weights(made, run_job, strike, stage, step, goes_on_at):
    whole, spec = made
    strike(stage, step, killed)
    with pytest.raises(Killed):
        run_job(spec)
    code, out = run_job(spec)
    assert code == errors.OK
    assert resumed(out) == goes_on_at
    assert same(weights(out), weights(whole))
    assert not (out / "checkpoint").exists()


def test_sigterm_leaves_a_checkpoint_of_the_step(made, run_job, strike):
    whole, spec = made
    strike("pretrain", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    try:
        code, out = run_job(spec)
        assert code == errors.INTERRUPTED
        assert not (out / "model").exists()
        assert run_job(spec)[0] == errors.OK
    finally:
        signal.signal(signal.SIGTERM, before)
    assert resumed(out) == [("pretrain", 4)]
    assert same(weights(out), weights(whole))


def test_a_checkpoint_of_another_run_is_refused(made, run_job, strike, capsys):
    whole, spec = made
    strike("pretrain", 6, killed)
    with pytest.raises(Killed):
        run_job(spec)
    code, out = run_job({**spec, "seed": 6})
    assert code == errors.BAD_INPUT
    assert "another specification" in capsys.readouterr().err
    (out / "checkpoint" / fitting.FILE).write_bytes(b"half a file")
    code, _ = run_job(spec)
    assert code == 0  # a file that a crash cut holds nothing: the job is done again from its start
    assert "starting over" in capsys.readouterr().err
    assert resumed(out) == []
    assert same(weights(out), weights(whole))


def test_lora_tunes_the_language_side_only_and_resumes(made, run_job, strike):
    base, spec = made
    spec = {**spec, "base": str(base / "model"), "hyper": {**TINY, "tuning": "lora", "rank": 4, "alpha": 8}}
    code, out = run_job(spec, "whole")
    assert code == errors.OK
    before, after = weights(base), weights(out)
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed
    assert all("language_model" in k and "_proj" in k for k in changed)
    adapter = load_file(out / "adapter" / "adapter_model.safetensors")
    assert all("language_model" in k and "lora_" in k for k in adapter)
    assert len(adapter) == 2 * len(changed)
    strike("pretrain", 6, killed)
    with pytest.raises(Killed):
        run_job(spec, "killed")
    code, out = run_job(spec, "killed")
    assert code == errors.OK
    assert resumed(out) == [("pretrain", 6)]
    assert same(weights(out), after)


@pytest.fixture
def own_folder(tmp_path, products):
    """The miniature shop as somebody's own folder of pictures and texts."""
    d = tmp_path / "folder"
    d.mkdir()
    rows = []
    for i, p in enumerate(products):
        (d / f"{i}.png").write_bytes(png(np.full((30, 20, 3), 10 * i, np.uint8)))
        row = {"image": f"{i}.png", "title": p.title, "category": p.category, "background": f"table {i}, soft light"}
        rows.append({**row, "creative": f"{i}.png", "holdout": p.holdout})
    (d / "products.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return d


def of_folder(make_spec, folder, hyper, **fields):
    spec = make_spec("pretrain", hyper, dataset=str(folder), **fields)
    return {k: x for k, x in spec.items() if k not in ("renderer", "grammar", "catalogue")}


def test_a_folder_alone_makes_a_model(own_folder, run_job, make_spec):
    code, out = run_job(of_folder(make_spec, own_folder, TINY))
    assert code == errors.OK
    figures = json.loads((out / "metrics.json").read_text())["figures"]
    tasks = figures["folder"]["tasks"]
    assert {t["family"] for t in tasks.values()} == {"image", "content", "prompt"}
    assert all(np.isfinite(t["loss"]) for t in tasks.values())
    assert PromptModel.load(out / "model").prompting.instructions


@pytest.mark.parametrize(("kind", "tuning"), [("llava-1.6-mistral", "lora"), ("qwen2.5-vl", "full")])
def test_real_architectures_continue_the_same_way(own_folder, tmp_path, run_job, make_spec, kind, tuning):
    from ctrloop_trainer.prompt import miniatures
    from ctrloop_trainer.prompt.model import INSTRUCTIONS, Prompting

    base = miniatures.save(kind, tmp_path / "base", ["table, soft light"] * 3, Prompting(INSTRUCTIONS, view_px=56))
    hyper = {"tuning": tuning, "vision_steps": 0, "steps": 2, "batch": 2, "lr": 0.01, "warm_up": 0}
    hyper |= {"eval_examples": 1, "rank": 4}
    code, out = run_job(of_folder(make_spec, own_folder, hyper, base=str(base)))
    assert code == errors.OK
    before, after = (load_file(d / "model.safetensors") for d in (base, out / "model"))
    assert before.keys() == after.keys()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed
    assert not any("vision_tower" in k or "visual" in k for k in changed)


@pytest.mark.parametrize(
    ("change", "hyper", "message"),
    [
        ({"catalogue": None}, {}, "catalogue: missing"),
        (
            {"renderer": None, "grammar": None, "catalogue": None},
            {},
            "no examples: give renderer, grammar, catalogue, or dataset",
        ),
        ({}, {"tuning": "lora"}, "lora needs a base"),
        ({}, {"tuning": "half"}, "use one of full, lora"),
        ({}, {"steps": 0}, "hyper.steps: must be at least 1"),
        ({}, {"clean": 1.5}, "hyper.clean: must be within 0 and 1"),
        ({}, {"image_share": 0.6, "content_share": 0.6}, "together at most 1"),
    ],
)
def test_what_cannot_run_is_said_before_work_starts(make_spec, run_job, capsys, change, hyper, message):
    spec = {k: x for k, x in {**make_spec("pretrain", TINY | hyper), **change}.items() if x is not None}
    code, out = run_job(spec)
    assert code == errors.BAD_INPUT
    assert message in capsys.readouterr().err
    assert not (out / "model").exists()


def test_weights_that_are_not_finite_are_refused(made, tmp_path, run_job, capsys):
    import shutil

    from safetensors.torch import save_file

    broken = shutil.copytree(made[0] / "model", tmp_path / "broken")
    values = load_file(broken / "model.safetensors")
    values[next(iter(values))].view(-1)[0] = float("nan")
    save_file(values, broken / "model.safetensors", {"format": "pt"})
    code, _ = run_job({**made[1], "base": str(broken)})
    assert code == errors.BAD_INPUT
    assert "not finite" in capsys.readouterr().err
