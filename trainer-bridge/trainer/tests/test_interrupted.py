"""Files that a kill has cut, folders of another version of the code: made again or refused, never mixed."""

import json
import os

import pytest
import torch

from ctrloop_trainer import errors, progress, resume
from ctrloop_trainer import spec as specs
from ctrloop_trainer.prompt import fitting


@pytest.fixture
def spec():
    return specs.Spec("rounds", "r", seed=3)


def test_a_folder_is_claimed_for_one_specification_and_one_version(tmp_path, spec, monkeypatch):
    marker, state = tmp_path / "spec.json", tmp_path / "state"
    resume.claim(marker, spec, [state])
    state.mkdir()
    resume.claim(marker, spec, [state])  # the same job goes on
    with pytest.raises(errors.BadInputError, match="seed differ"):
        resume.claim(marker, specs.Spec("rounds", "r", seed=4), [state])
    monkeypatch.setattr(resume, "code_digest", lambda: "another")
    with pytest.raises(errors.BadInputError, match="another version of the trainer"):
        resume.claim(marker, spec, [state])
    assert state.is_dir()


def test_where_nobody_can_tell_whose_it_is_it_is_made_again(tmp_path, spec):
    marker, state = tmp_path / "spec.json", tmp_path / "state"
    state.mkdir()
    marker.write_text('{"kind": "rou')
    resume.claim(marker, spec, [state])
    assert not state.exists()
    assert json.loads(marker.read_text())["seed"] == 3


def test_a_cut_checkpoint_is_removed_and_told(tmp_path):
    p = progress.Progress(tmp_path)
    path = tmp_path / "unet.pt"
    assert resume.checkpoint(path, p) is None
    torch.save({"step": 3}, path)
    assert resume.checkpoint(path, p) == {"step": 3}
    path.write_bytes(path.read_bytes()[:200])
    assert resume.checkpoint(path, p) is None
    assert not path.exists()
    assert "started over" in (tmp_path / "metrics.jsonl").read_text()


def test_a_cut_checkpoint_of_pretraining_starts_over(tmp_path):
    kept = fitting.Checkpoints(tmp_path / "checkpoint", "f", 1)
    kept.save(fitting.State("f", "pretrain", 2, {}, {}, [1.0, 2.0]))
    file = tmp_path / "checkpoint" / fitting.FILE
    assert fitting.Checkpoints(tmp_path / "checkpoint", "f", 1).state.step == 2
    file.write_bytes(file.read_bytes()[:100])
    assert fitting.Checkpoints(tmp_path / "checkpoint", "f", 1).state is None
    assert fitting.Checkpoints(tmp_path / "checkpoint", "f", 1).state is None  # and it is gone


def test_a_file_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    progress.write_json(path, {"a": 1})

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        progress.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Or a machine that loses its power keeps the new name with nothing behind it."""
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (order.append("disk"), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("name"), replace(a, b)))
    progress.write_lines(tmp_path / "a.jsonl", [{"a": 1}])
    assert order == ["disk", "name", "disk"]


def test_the_curve_goes_on_behind_a_cut_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    progress.Progress(tmp_path).log(step=2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[1] == '{"st'
    assert json.loads(lines[2])["step"] == 2


def test_figures_that_are_no_numbers_are_absent(tmp_path):
    progress.write_json(tmp_path / "m.json", {"a": [float("nan"), 1.0], "b": {"c": float("inf")}})
    assert json.loads((tmp_path / "m.json").read_text()) == {"a": [None, 1.0], "b": {"c": None}}
    assert "NaN" not in (tmp_path / "m.json").read_text()
