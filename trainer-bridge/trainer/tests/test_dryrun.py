"""The dry run against the published sizes of the 7 B models, from their config.json alone, and against a miniature."""

import json

import pytest
import torch

from ctrloop_trainer import dryrun, errors
from ctrloop_trainer.prompt import families, lora, miniatures

# As published beside the weights, in what matters for sizes.
LLAVA_16_MISTRAL_7B = {
    "architectures": ["LlavaNextForConditionalGeneration"],
    "model_type": "llava_next",
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "text_config": {
        "model_type": "mistral",
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "vocab_size": 32064,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
}
QWEN_25_VL_7B = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "temporal_patch_size": 2,
    },
}
# Parameters in billions by the models' pages; LoRA of rank 128 by hand: per layer 128 x (in + out) of the seven layers.
PUBLISHED = {
    "llava": (LLAVA_16_MISTRAL_7B, 7.57, 32 * 128 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))),
    "qwen": (QWEN_25_VL_7B, 8.29, 28 * 128 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))),
}


@pytest.fixture(params=PUBLISHED)
def published(request, tmp_path):
    config, billions, lora = PUBLISHED[request.param]
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path, billions, lora


def test_parameters_are_the_published_ones(published):
    folder, billions, lora = published
    s = dryrun.shape(folder, 128)
    assert round(s.parameters / 1e9, 2) == billions
    assert s.adapter == lora


def test_memory_by_part(published):
    """bf16 weights take two bytes each; 4 bit a quarter of that for what is quantised; FSDP divides; checkpointing
    and QLoRA bring a 7 B model onto one card, all weights in fp32 need several large ones."""
    folder, billions, _ = published
    s = dryrun.shape(folder, 128)
    w = dryrun.work({"kind": "rounds", "hyper": {"batch": 2}}, s, 80, 64)
    lora = dryrun.memory(s, w, dryrun.Plan("a"))
    assert lora["weights"] == s.parameters * 2 + s.adapter * 4
    assert lora["gradients"] * 2 == lora["optimizer"] == s.adapter * 8
    four = dryrun.memory(s, w, dryrun.Plan("b", quantized=True))
    assert four["weights"] < 0.45 * lora["weights"]
    sharded = dryrun.memory(s, w, dryrun.Plan("c", processes=8))
    assert sharded["weights"] < lora["weights"] / 4
    assert sharded["activations"] == lora["activations"] / 2  # a batch of 2 is shared
    loose = dryrun.memory(s, w, dryrun.Plan("d", checkpointing=False))
    assert loose["activations"] > 5 * lora["activations"]
    everything = dryrun.memory(s, w, dryrun.Plan("e", full=True))
    assert everything["total"] > s.parameters * 16
    one = dryrun.work({"kind": "rounds", "hyper": {"batch": 1}}, s, 80, 64)
    small = dryrun.memory(s, one, dryrun.Plan("f", quantized=True))
    assert small["total"] < 20e9 < lora["total"] < 80e9 < everything["total"]
    assert billions * 16e9 < everything["total"]


@pytest.mark.parametrize("kind", miniatures.KINDS)
def test_a_miniatures_numbers_are_exact(kind, tmp_path):
    model, processor = miniatures.build(kind, ["a table"] * 3)
    model.save_pretrained(tmp_path)
    s = dryrun.shape(tmp_path, 4)
    assert s.parameters == sum(p.numel() for p in model.parameters())
    config = model.config
    for size in ((64, 64), (90, 40), (40, 90), (70, 64)):
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}]}], add_generation_prompt=True, tokenize=False
        )
        picture = torch.zeros(3, size[1], size[0], dtype=torch.uint8)
        ids = processor(text=[text], images=[picture])["input_ids"][0]
        assert dryrun.picture_tokens(config, *size) == ids.count(processor.image_token_id)
    adapted = lora.attach(model, families.of(model), 4, 0.0, 0)
    assert s.adapter == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_the_command_prints_sizes_steps_and_tokens(published, tmp_path, capsys):
    folder, billions, lora = published
    hyper = {"products": 1000, "batch": 16, "epochs": 5, "rank": 128, "arms": "pcpo"}
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"kind": "rounds", "id": "dry", "base": str(folder), "hyper": hyper}))
    dryrun.main(spec, 8)
    out = capsys.readouterr().out
    assert f"({billions:.2f} B)" in out
    assert f"{lora:,}" in out
    assert "63 steps of 16 x 6 sequences" in out
    for column in ("LoRA, bf16", "QLoRA, 4 bit", "LoRA, FSDP x 8", "all weights, FSDP x 8", "no checkpointing"):
        assert column in out


def test_a_dry_run_says_what_it_lacks(tmp_path):
    with pytest.raises(errors.BadInputError, match="base: missing"):
        dryrun.report({"kind": "rounds"})
    with pytest.raises(errors.BadInputError, match=r"config\.json"):
        dryrun.report({"kind": "rounds", "base": str(tmp_path)})
