"""Input that cannot work, through the job's command line: it ends with the code that says "do not repeat" (2, or 4
for numbers that are not finite), a message that says what, why and what to do, and no model left behind."""

import json
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from conftest import WEIGHTS, Data, png
from safetensors.torch import load_file, save_file

from ctrloop_trainer import errors
from ctrloop_trainer.reward.trunk import Trunk


@pytest.fixture(scope="module")
def trunk(tmp_path_factory, grammar):
    """An untrained eye: enough for jobs that must not get as far as to use it."""
    folder = tmp_path_factory.mktemp("trunk")
    torch.manual_seed(0)
    Trunk(grammar.sizes).save(folder)
    return folder


@pytest.fixture
def refuses(run_job, capsys):
    """refuses(spec, *words, code): runs the job and checks code, message and that nothing half-made is left."""

    def check(spec: dict, *words: str, code: int = errors.BAD_INPUT) -> None:
        got, out = run_job(spec)
        err = capsys.readouterr().err
        assert got == code, err
        for w in words:
            assert w in err
        if out.exists():
            told = json.loads((out / "error.json").read_text())
            assert told["exit_code"] == code
            assert "Traceback" not in told["error"]
            assert not (out / "metrics.json").exists()
            assert not list(out.rglob("*.safetensors"))

    return check


# --- data sets ---


@pytest.fixture(scope="module")
def whole(make_data):
    """A small data set without a fault."""
    return make_data(lambda x: 0.0, per=3, names=12)


@pytest.fixture
def reward(whole, make_spec, trunk, tmp_path):
    """reward(damage): a reward job on a data set that damage(data) has changed."""

    def make(damage=lambda data: None, **hyper) -> dict:
        data = Data(dict(whole.creatives), dict(whole.pairs))
        damage(data)
        hyper = {"trunk": str(trunk), "epochs": 1, "baselines": False, **hyper}
        return make_spec("reward", hyper, dataset=str(data.write(tmp_path / "d")))

    return make


def put(table: str, column: str, row: int, value):
    """Damage: one value of a table."""

    def damage(data) -> None:
        columns = getattr(data, table)
        values = list(columns[column])
        values[row] = value
        columns[column] = values

    return damage


def bomb() -> bytes:
    """A small PNG that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


NOISE = png(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, ("creative c-3 has no image",)),
        (b"", ("creative c-3 has no image",)),
        (b"GIF", ("creative c-3", "is not a picture")),
        (NOISE[: len(NOISE) // 2], ("creative c-3", "damaged")),
        (bomb(), ("creative c-3", "too large to be read")),
        (png(np.zeros((3000, 3000, 3), np.uint8)), ("creative c-3", "3000 x 3000 px")),
        (png(np.zeros((64, 32, 3), np.uint8)), ("differ in size",)),
    ],
    ids=["missing", "empty", "no picture", "cut", "bomb", "huge", "other size"],
)
def test_images(reward, refuses, value, words):
    refuses(reward(put("creatives", "image_png", 3, value)), *words)


def test_images_of_a_smaller_view_than_the_trunk_s(reward, refuses):
    def shrink(data):
        rng = np.random.default_rng(0)
        pngs = [png(rng.integers(0, 255, (48, 48, 3)).astype(np.uint8)) for _ in data.creatives["image_png"]]
        data.creatives["image_png"] = pngs

    refuses(reward(shrink), "48 x 48", "64 x 64")


@pytest.mark.parametrize(
    ("table", "column", "value", "words"),
    [
        ("creatives", "caption", "", ("c-3", "empty caption")),
        ("creatives", "caption", " \n", ("c-3", "empty caption")),
        ("creatives", "caption", None, ("c-3", "empty caption")),
        ("creatives", "posterior_mean", float("nan"), ("posterior_mean of creative c-3",)),
        ("creatives", "posterior_mean", 1.0, ("posterior_mean of creative c-3",)),
        ("creatives", "clicks", 5000, ("creative c-3", "5000 clicks on 4000 impressions")),
        ("creatives", "clicks", -1, ("creative c-3", "-1 clicks")),
        ("creatives", "product", None, ("product", "row 3")),
        ("pairs", "weight", float("nan"), ("pair weight outside",)),
        ("pairs", "weight", float("inf"), ("pair weight outside",)),
        ("pairs", "weight", None, ("weight", "row 3")),
        ("pairs", "left_wins", None, ("left_wins", "row 3")),
        ("pairs", "left", "c-none", ("c-none",)),
        ("pairs", "split", "tset", ("split", "tset")),
    ],
)
def test_values(reward, refuses, table, column, value, words):
    refuses(reward(put(table, column, 3, value)), *words)


def test_a_creative_that_is_there_twice(reward, refuses):
    def repeat(data):
        data.creatives = {k: [*v, list(v)[2]] for k, v in data.creatives.items()}

    refuses(reward(repeat), "creative c-2 is twice")


@pytest.mark.parametrize("column", ["weight", "image_png", "split"])
def test_missing_columns(reward, refuses, column):
    def drop(data):
        (data.pairs if column in data.pairs else data.creatives).pop(column)

    refuses(reward(drop), column)


def test_columns_of_another_type(reward, refuses):
    def change(data):
        data.pairs["weight"] = ["heavy"] * len(data.pairs["weight"])

    refuses(reward(change), "weight", "double", "string")


@pytest.mark.parametrize("file", ["pairs.arrow", "creatives.arrow"])
@pytest.mark.parametrize("how", ["gone", "cut", "text"])
def test_files(reward, refuses, tmp_path, file, how):
    spec = reward()
    path = tmp_path / "d" / file
    raw = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(raw[: len(raw) // 2] if how == "cut" else b"pair_id,left,right\n")
    refuses(spec, file)


def test_no_training_pairs(reward, refuses):
    def hold(data):
        data.pairs["split"] = ["test"] * len(data.pairs["split"])

    refuses(reward(hold), "no training pairs", "wait for more clicks", code=errors.NO_EVIDENCE)


# --- weights ---


def broken(source, target, change):
    """A copy of a folder of weights with its tensors changed."""
    shutil.copytree(source, target)
    (file,) = target.glob("*.safetensors")
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})
    return target


def poison(state):
    first = sorted(state)[0]
    state[first] = torch.full_like(state[first], float("nan"))


def test_trunk_weights_that_are_not_finite(reward, refuses, trunk, tmp_path):
    refuses(reward(trunk=str(broken(trunk, tmp_path / "nan", poison))), "not finite", "use another")


def test_trunk_that_is_no_trunk(reward, refuses, trunk, tmp_path):
    refuses(reward(trunk=str(tmp_path)), "holds no trunk")
    other = broken(trunk, tmp_path / "other", lambda state: state.pop(sorted(state)[0]))
    refuses(reward(trunk=str(other)), "cannot load the trunk")
    cut = tmp_path / "cut"
    shutil.copytree(trunk, cut)
    file = cut / "trunk.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    refuses(reward(trunk=str(cut)), "cannot load the trunk")


@pytest.fixture
def describe(make_spec):
    """describe(base): a job that loads a base prompt model."""
    return lambda base, **fields: make_spec("describe", {"samples": 1}, base=str(base), **fields)


BASE = WEIGHTS / "prompt-base"


def test_base_weights_that_are_not_finite(describe, refuses, tmp_path):
    refuses(describe(broken(BASE, tmp_path / "nan", poison)), "not finite")


def test_base_with_weights_of_another_model(describe, refuses, tmp_path):
    def drop(state):
        for k in sorted(state)[:4]:
            del state[k]

    refuses(describe(broken(BASE, tmp_path / "few", drop)), "few", "weights of a Llava", "another model's folder")


@pytest.mark.parametrize(
    ("file", "keep"),
    [
        ("config.json", 0),
        ("config.json", 50),
        ("model.safetensors", 0),
        ("model.safetensors", 5000),
        ("prompting.json", 50),  # a folder without one is as downloaded, and fine
        ("tokenizer.json", 50),
    ],
)
def test_base_files(describe, refuses, tmp_path, file, keep):
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    raw = (base / file).read_bytes()
    (base / file).unlink()
    if keep:
        (base / file).write_bytes(raw[:keep])
    refuses(describe(base), str(base))


def test_base_that_is_something_else(describe, refuses, trunk, tmp_path):
    refuses(describe(trunk), str(trunk))
    refuses(describe(tmp_path / "none"), "base: no folder")
    other = tmp_path / "other"
    shutil.copytree(BASE, other)
    (other / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    refuses(describe(other), "other")


def test_base_of_another_digest(describe, refuses):
    refuses(describe(BASE, base_digest="0" * 64), "base_digest", "give the base that was meant")


def test_reward_model_that_is_none(make_spec, refuses, trunk):
    models = {"base": str(BASE), "reward_model": str(trunk)}
    refuses(make_spec("rounds", {"epochs": 1}, **models), "reward model", str(trunk))


# --- catalogue, grammar, renderer ---


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"caption": ""}, ("catalogue.jsonl:2", "empty caption")),
        ({"caption": None}, ("catalogue.jsonl:2", "caption")),
        ({"fits": None}, ("catalogue.jsonl:2", "must both be lists")),
        (None, ("catalogue.jsonl:2", "ctrloop render catalogue")),
    ],
)
def test_catalogues(describe, refuses, shop, tmp_path, change, words):
    lines = (shop / "catalogue.jsonl").read_text().splitlines()
    lines[1] = "{" if change is None else json.dumps({**json.loads(lines[1]), **change})
    (tmp_path / "catalogue.jsonl").write_text("\n".join(lines) + "\n")
    refuses(describe(BASE, catalogue=str(tmp_path / "catalogue.jsonl")), *words)


def test_an_empty_catalogue(describe, refuses, tmp_path):
    (tmp_path / "c.jsonl").write_text("")
    refuses(describe(BASE, catalogue=str(tmp_path / "c.jsonl")), "is empty")


def test_grammars(describe, refuses, tmp_path):
    (tmp_path / "g.json").write_text('{"scenes": []}')
    refuses(describe(BASE, grammar=str(tmp_path / "g.json")), "cannot use the grammar", "ctrloop render grammar")


def test_renderers(describe, refuses):
    refuses(describe(BASE, renderer=["/nonexistent/ctrloop", "render", "pipe"]), "cannot start", "is `ctrloop` built?")
    refuses(describe(BASE, renderer=["false"]), "renderer", "ended with code 1")
    refuses(describe(BASE, renderer=["echo", "hello"]), "renderer")
