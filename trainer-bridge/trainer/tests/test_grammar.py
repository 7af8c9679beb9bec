"""The grammar's reader, and the renderer's client."""

import sys

import numpy as np
import pytest
from conftest import HERE, STUB

from ctrloop_trainer import errors
from ctrloop_trainer.errors import BadInputError
from ctrloop_trainer.grammar import Grammar
from ctrloop_trainer.render import Renderer, Shot


def test_describe_and_parse_are_inverse(grammar):
    for t in [(0, 0, 0, 0), tuple(n - 1 for n in grammar.sizes), (15, 3, 2, 1)]:
        assert grammar.parse(grammar.describe(t)) == t


@pytest.mark.parametrize(
    "text",
    [
        "",
        "oak kitchen table",
        "oak kitchen table, warm amber, soft morning light, fresh leaves",
        "oak kitchen table, warm amber tones, soft morning light, fresh leaves, more",
        "ivory table, warm amber tones, soft morning light, fresh leaves",
        "oak kitchen table, warm amber tones tones, soft morning light, fresh leaves",
    ],
)
def test_malformed_text_has_no_tokens(grammar, text):
    assert grammar.parse(text) is None


def test_clickbait_scenes_come_after_the_plain_ones(grammar):
    assert [grammar.is_clickbait((i, 0, 0, 0)) for i in (0, 13, 14, 17)] == [False, False, True, True]


def test_incomplete_grammar_is_refused(tmp_path):
    (tmp_path / "g.json").write_text('{"scenes": ["a"]}')
    with pytest.raises(BadInputError, match="ctrloop render grammar"):
        Grammar.load(tmp_path / "g.json")


def test_renderer_keeps_order_across_batches(grammar):
    shots = [Shot(f"p-{i % 3}", grammar.describe((i % 18, i % 10, 0, 0))) for i in range(7)]
    with Renderer(STUB, batch=3) as r:
        together, valid = r.render([*shots, Shot("p-1", "nonsense"), Shot("p-1", "")])
        alone = np.concatenate([r.render([s])[0] for s in shots])
    assert np.array_equal(together[:7], alone)
    assert valid.tolist() == [True] * 7 + [False, True]


def test_dead_renderer_says_why():
    with Renderer([sys.executable, str(HERE / "stub_render.py"), "fail"]) as r, pytest.raises(BadInputError) as e:
        r.render([Shot("p-1", "")])
    assert "ended with code 1" in str(e.value)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", errors.INTERRUPTED), ("SIGKILL", errors.OUT_OF_MEMORY)])
def test_a_renderer_ended_by_a_signal_is_no_bad_input(name, code):
    """A stop that reaches the whole process group, or a machine without memory: the same job may well succeed."""
    with Renderer([*STUB, name]) as r, pytest.raises(errors.JobError, match=name) as e:
        r.render([Shot("p-1", "")])
    assert e.value.exit_code == code


def test_a_program_that_is_no_renderer_is_bad_input():
    with Renderer([*STUB, "babble"]) as r, pytest.raises(BadInputError, match="render pipe"):
        r.render([Shot("p-1", "")])


def test_missing_renderer_is_bad_input():
    with pytest.raises(BadInputError, match="is `ctrloop` built"):
        Renderer(["/nonexistent/ctrloop"])
