"""Miniatures of the families that production uses: the same classes, processors, special tokens and module names as
the 7 B models, with random weights and about 0.2 M parameters. What runs on them runs on the real ones, but for size.

They are built offline from configurations: for the tests, and for the GPU check.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from .model import Prompting

HIDDEN, LAYERS, HEADS, KV_HEADS, FEED_FORWARD, VOCABULARY = 64, 2, 4, 2, 128, 512
TILE_PX, PATCH_PX = 32, 8  # of LLaVA-1.6's tower: 16 tokens a tile
KINDS = ("llava-1.6-mistral", "llava-1.6-vicuna", "qwen2.5-vl")

_LLAMA_TOKENS = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
_QWEN_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
_PARTS = (
    "{%% for c in m['content'] %%}{%% if c['type'] == 'image' %%}%s{%% else %%}{{ c['text'] }}{%% endif %%}"
    "{%% endfor %%}"
)
# The conversation formats of the published models: Mistral's [INST], Vicuna's USER/ASSISTANT, Qwen's ChatML.
_TEMPLATES = {
    "llava-1.6-mistral": "{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
    + _PARTS % "<image>\n"
    + " [/INST]{% else %}"
    + _PARTS % ""
    + "</s>{% endif %}{% endfor %}",
    "llava-1.6-vicuna": "{% for m in messages %}{{ 'USER: ' if m['role'] == 'user' else 'ASSISTANT: ' }}"
    + _PARTS % "<image>\n"
    + " {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "qwen2.5-vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    + _PARTS % "<|vision_start|><|image_pad|><|vision_end|>"
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}


def build(kind: str, texts: Iterable[str], seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model of one of KINDS and its processor; texts train the tokenizer."""
    torch.manual_seed(seed)
    return _qwen(texts) if kind == "qwen2.5-vl" else _llava_next(kind, texts)


def save(kind: str, folder: Path, texts: Iterable[str], prompting: Prompting, seed: int = 0) -> Path:
    """build, written as a model folder with prompting.json."""
    model, processor = build(kind, texts, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    prompting.save(folder)
    return folder


def _tokenizer(texts: Iterable[str], special: list[str], **kinds: str) -> PreTrainedTokenizerFast:
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    t.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=t, padding_side="left", **kinds)


def _text(tokenizer: PreTrainedTokenizerFast) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 1024,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        # Wider than usual: a random model must prefer some tokens, or greedy answers would hang on rounding.
        "initializer_range": 0.1,
    }


def _finish(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model.eval()


def _llava_next(kind: str, texts: Iterable[str]) -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = _tokenizer(
        texts,
        _LLAMA_TOKENS,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    grid = [[TILE_PX, 2 * TILE_PX], [2 * TILE_PX, TILE_PX], [2 * TILE_PX, 2 * TILE_PX]]
    images = LlavaNextImageProcessor(
        size={"shortest_edge": TILE_PX},
        crop_size={"height": TILE_PX, "width": TILE_PX},
        image_grid_pinpoints=grid,
    )
    processor = LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=PATCH_PX,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATES[kind],
    )
    flavour = MistralConfig if kind == "llava-1.6-mistral" else LlamaConfig
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=TILE_PX,
        patch_size=PATCH_PX,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=flavour(**_text(tokenizer), **({"sliding_window": None} if flavour is MistralConfig else {})),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
    )
    return _finish(LlavaNextForConditionalGeneration(config), tokenizer), processor


def _qwen(texts: Iterable[str]) -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = _tokenizer(
        texts,
        _QWEN_TOKENS,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )
    ids = tokenizer.convert_tokens_to_ids
    processor = Qwen2_5_VLProcessor(
        # The published limits, in pixels.
        Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 12845056}, patch_size=14, merge_size=2),
        tokenizer,
        Qwen2VLVideoProcessor(),
        chat_template=_TEMPLATES["qwen2.5-vl"],
    )
    config = Qwen2_5_VLConfig(
        text_config={
            **_text(tokenizer),
            # Sections of temporal, height and width positions: together half a head.
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    return _finish(Qwen2_5_VLForConditionalGeneration(config), tokenizer), processor
