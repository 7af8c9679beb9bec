"""Weights that are not finite, or larger than training can have made them, never leave a job; a server refuses them."""

import json
import struct

import numpy as np
import pytest
import torch
from conftest import WEIGHTS

from ctrloop_trainer import errors, weights
from ctrloop_trainer.prompt import lora
from ctrloop_trainer.prompt.model import PromptModel
from ctrloop_trainer.reward.trunk import Trunk
from ctrloop_trainer.rounds import adapter


@pytest.fixture
def v():
    model = PromptModel.load(WEIGHTS / "prompt-base")
    adapter.attach(model, 4, 0.0, 0)
    return model


def change(v, side, value):
    with torch.no_grad():
        for n, p in v.model.named_parameters():
            if f"lora_{side}" in n and "layers.1.mlp.up_proj" in n:
                p.fill_(value)


@pytest.mark.parametrize(("value", "told"), [(np.nan, "not finite"), (np.inf, "not finite"), (1e4, "times")])
def test_an_adapter_that_no_server_may_see_is_not_written(v, tmp_path, value, told):
    change(v, "B", value)
    with pytest.raises(errors.DivergedError, match=told) as e:
        adapter.save(v, tmp_path / "a")
    assert "layers.1.mlp.up_proj" in str(e.value)
    assert not (tmp_path / "a").exists()


def test_a_sound_adapter_is_written_with_a_card_that_names_its_base(v, tmp_path):
    change(v, "B", 0.02)
    v.name = "owner/model-7b"
    v.model.peft_config["default"].base_model_name_or_path = v.name
    adapter.save(v, tmp_path / "a", "f" * 64)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/model-7b"
    card = (tmp_path / "a" / "README.md").read_text()
    assert card.startswith("---\nbase_model: owner/model-7b\nlibrary_name: peft\n")
    assert "f" * 64 in card
    assert "rank 4, alpha 8" in card


def test_the_norm_of_what_an_adapter_adds():
    a, b = torch.randn(3, 8), torch.randn(5, 3)
    assert weights.delta_norm(a, b, 2.0) == pytest.approx((2 * b @ a).norm().item(), rel=1e-5)


def test_other_weights_are_held_to_it_too(tmp_path, grammar):
    trunk = Trunk(grammar.sizes)
    with torch.no_grad():
        next(trunk.parameters()).fill_(float("nan"))
    with pytest.raises(errors.DivergedError, match="the trunk are not finite"):
        trunk.save(tmp_path / "trunk")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_lora_on_the_picture_s_side_is_refused(v):
    """Of a family whose rows are wrong: nothing would be said, and the tower would move."""
    import dataclasses

    fresh = PromptModel.load(WEIGHTS / "prompt-base")
    wrong = dataclasses.replace(fresh.family, vision=("model.multi_modal_projector",))
    with pytest.raises(errors.BadInputError, match=r"model\.vision_tower.*families\.py"):
        lora.attach(fresh.model, wrong, 4, 0.0, 0)


def header(shape, size):
    told = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(told)) + told


@pytest.mark.parametrize(
    "raw",
    [
        header([1 << 32, 1 << 32], 0),  # the product of the shape overflows to 0
        header([4], 8) + b"\0" * 8,
        header([2], 8) + b"\0" * 4,
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 1 << 63) + b"{}",
        b"\0" * 4,
    ],
    ids=["overflow", "too small", "cut", "endless header", "negative header", "no header"],
)
def test_files_whose_header_lies_are_refused(tmp_path, raw):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(raw)
    fresh = PromptModel.load(WEIGHTS / "prompt-base")
    adapter.attach(fresh, 4, 0.0, 0)
    with pytest.raises(errors.BadInputError, match="cannot load the adapter"):
        adapter.load(fresh, folder)
