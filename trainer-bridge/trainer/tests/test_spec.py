"""Bad input: a clear message, and the exit code that says "do not repeat"."""

import hashlib
import json

import pytest
import torch
from conftest import WEIGHTS
from safetensors.torch import load_file, save_file

from ctrloop_trainer import errors, job
from ctrloop_trainer.digest import dir_digest


def base_spec(make_spec, **fields):
    return make_spec("rounds", base=str(WEIGHTS / "prompt-base"), reward_model=str(WEIGHTS), **fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "dance"}, "kind: 'dance' is unknown"),
        ({"kind": None}, "kind: None is unknown"),
        ({"base": "/nonexistent"}, "base: no folder"),
        ({"base": None}, "base: missing"),
        ({"grammar": "/nonexistent"}, "grammar: no file"),
        ({"seed": "five"}, "seed: must be int"),
        ({"colour": 1}, "colour: unknown field"),
        ({"base_digest": "0" * 64}, "base_digest"),
        ({"hyper": {"epoch": 3}}, "hyper.epoch: unknown"),
        ({"hyper": {"epochs": "3"}}, "hyper.epochs: must be int"),
        ({"hyper": {"arms": "dpo,ppo"}}, "unknown: ppo"),
    ],
)
def test_bad_specifications(make_spec, run_job, capsys, change, message):
    code, _ = run_job({**base_spec(make_spec), **change})
    assert code == errors.BAD_INPUT
    assert message in capsys.readouterr().err


def test_every_problem_is_reported_at_once(make_spec, run_job, capsys):
    run_job({**base_spec(make_spec), "base": "/nonexistent", "grammar": "/nonexistent"})
    err = capsys.readouterr().err
    assert "base: no folder" in err
    assert "grammar: no file" in err


def test_specification_that_is_not_json(tmp_path, capsys):
    (tmp_path / "s.json").write_text("{")
    assert job.main([str(tmp_path / "s.json"), "--out", str(tmp_path / "o")]) == errors.BAD_INPUT
    assert "is not JSON" in capsys.readouterr().err


def test_weights_that_are_not_finite(make_spec, run_job, tmp_path, capsys):
    broken = tmp_path / "base"
    broken.mkdir()
    for f in (WEIGHTS / "prompt-base").iterdir():
        (broken / f.name).write_bytes(f.read_bytes())
    state = load_file(broken / "model.safetensors")
    first = sorted(state)[0]
    state[first] = torch.full_like(state[first], float("nan"))
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    from ctrloop_trainer.prompt.model import PromptModel

    with pytest.raises(errors.BadInputError, match="not finite"):
        PromptModel.load(broken)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("image_png", None, "has no image"),
        ("image_png", b"not a picture", "is not a picture"),
        ("caption", " ", "empty caption"),
        ("posterior_mean", 0.0, "posterior_mean"),
    ],
)
def test_bad_creatives(make_data, make_spec, run_job, tmp_path, capsys, column, value, message):
    data = make_data(lambda x: 0.0, per=3, names=12)
    values = list(data.creatives[column])
    values[3] = value
    data.creatives[column] = values
    code, _ = run_job(make_spec("reward", dataset=str(data.write(tmp_path / "d"))))
    assert code == errors.BAD_INPUT
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("weight", float("nan"), "weight outside"),
        ("left", "c-none", "c-none"),
        ("split", "test", "is in the training and in the test split"),
    ],
)
def test_bad_pairs(make_data, make_spec, run_job, tmp_path, capsys, column, value, message):
    data = make_data(lambda x: 0.0, per=3, names=12)
    data.pairs[column] = [value, *data.pairs[column][1:]]
    code, _ = run_job(make_spec("reward", dataset=str(data.write(tmp_path / "d"))))
    assert code == errors.BAD_INPUT
    assert message in capsys.readouterr().err


def test_dataset_digest_is_checked(make_data, make_spec, run_job, tmp_path, capsys):
    folder = make_data(lambda x: 0.0, per=3, names=12).write(tmp_path / "d")
    code, _ = run_job(make_spec("reward", dataset=str(folder), dataset_digest="1" * 64))
    assert code == errors.BAD_INPUT
    assert dir_digest(folder) in capsys.readouterr().err


def test_digest_of_a_folder_is_the_artifact_store_s(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_text("two")
    (tmp_path / "a").write_text("one")
    h = {k: hashlib.sha256(v).hexdigest() for k, v in (("a", b"one"), ("c", b"two"))}
    want = hashlib.sha256(f"{h['a']}  a\n{h['c']}  b/c\n".encode()).hexdigest()
    assert dir_digest(tmp_path) == want


def test_a_bug_is_told_from_bad_input(make_spec, run_job, monkeypatch, capsys):
    from ctrloop_trainer.rounds import train as rounds

    monkeypatch.setattr(rounds, "run", lambda *_: 1 / 0)
    code, out = run_job(base_spec(make_spec))
    assert code == errors.BUG
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert json.loads((out / "error.json").read_text())["exit_code"] == errors.BUG


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (MemoryError("no"), errors.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), errors.OUT_OF_MEMORY),
        (errors.DivergedError("the loss is nan"), errors.DIVERGED),
        (errors.InterruptedJobError("stopped"), errors.INTERRUPTED),
    ],
)
def test_exit_codes(make_spec, run_job, monkeypatch, raised, code):
    from ctrloop_trainer.rounds import train as rounds

    def fail(*_):
        raise raised

    monkeypatch.setattr(rounds, "run", fail)
    assert run_job(base_spec(make_spec))[0] == code
