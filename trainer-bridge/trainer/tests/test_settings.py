"""Checking hyper-parameters before a job is prepared."""

import io
import json
import subprocess
import sys

import pytest

from ctrloop_trainer import errors, settings
from ctrloop_trainer.errors import BadInputError
from ctrloop_trainer.rounds.settings import Hyper


def test_settings_are_the_job_s_own_defaults():
    told = settings.effective("rounds", {"lr": 0.001})
    assert (told["lr"], told["epochs"]) == (0.001, Hyper().epochs)
    assert settings.effective("reward", {})["point_weight"] == 0.5
    assert settings.effective("evaluate", {"mllm": True})["mllm"] is True


@pytest.mark.parametrize(
    ("kind", "given", "why"),
    [
        ("rounds", {"arms": "nope"}, "unknown: nope"),
        ("rounds", {"leraning_rate": 1}, "leraning_rate"),
        ("rounds", {"epochs": 0}, "hyper.epochs"),
        ("reward", {"point_weight": "much"}, "hyper.point_weight"),
        ("evaluate", {"judges": ["somebody"]}, "a judge must be"),
        ("cook", {}, "kind"),
    ],
)
def test_what_a_job_would_refuse_is_refused(kind, given, why):
    with pytest.raises(BadInputError, match=why):
        settings.effective(kind, given)


@pytest.mark.parametrize("text", ["", "{}", '[{"kind": "rounds"}]', "[1]"])
def test_a_malformed_question_is_bad_input(monkeypatch, capsys, text):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert settings.main() == (errors.OK if text == "{}" else errors.BAD_INPUT)
    capsys.readouterr()


def test_rounds_are_checked_without_pytorch():
    asked = json.dumps([{"kind": "rounds", "hyper": {"epochs": 2}}])
    code = "import sys; from ctrloop_trainer import settings; settings.main(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], input=asked, capture_output=True, text=True, check=True)
    told, imported = done.stdout.splitlines()
    assert json.loads(told)[0]["epochs"] == 2
    assert imported == "False"
