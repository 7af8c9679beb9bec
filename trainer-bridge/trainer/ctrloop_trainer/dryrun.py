"""`python -m ctrloop_trainer.job SPEC.json --dry-run`: what a job would need, from the base's config.json alone.

No weights are read: the model is built on PyTorch's meta device, where tensors have shapes and no memory. So parameter
counts are exact; activations are an estimate (the elements that autograd keeps, named in `_kept_per_token`), good to a
third. `gpu_check` measures.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch

from .errors import BadInputError
from .rounds import corrupt, settings

GIB = 1 << 30
# 4-bit weights, double quantised: half a byte, and 8 + 32/256 bits of scale for every 64 weights (Dettmers 2023).
NF4_BYTES = 0.5 + (8 + 32 / 256) / 64 / 8


@dataclasses.dataclass(frozen=True)
class Shape:
    """What memory depends on, of one model."""

    name: str  # its class
    parameters: int
    linear: int  # of them in linear layers that 4-bit loading replaces (not the vocabulary projection)
    largest_layer: int  # parameters that FSDP gathers at a time
    adapter: int  # parameters of the LoRA
    adapter_in: int  # inputs of adapted layers, per token and decoder layer
    layers: int
    hidden: int
    keys: int  # width of keys (and of values): key-value heads x head size
    queries: int
    feed_forward: int
    vocabulary: int
    picture_tokens: int


@dataclasses.dataclass(frozen=True)
class Work:
    """What a job does with it."""

    products: int
    epochs: int
    arms: int
    batch: int  # samples (pairs) of a step, shared by the processes
    rows: int  # sequences per sample: y+, y- and, with PCPO, y+ and another answer under each x~
    prompt: int  # tokens of a prompt, pictures included
    answer: int  # tokens of an answer
    sampled: int  # answers generated together


@dataclasses.dataclass(frozen=True)
class Plan:
    """One column of the table."""

    name: str
    weight_bytes: float = 2.0  # per parameter of the base
    quantized: bool = False
    full: bool = False  # all weights trained, in fp32
    processes: int = 1  # over which weights, gradients and optimizer states are sharded (FSDP, ZeRO-3)
    checkpointing: bool = True


def shape(folder: Path, rank: int, view_px: int | None = None) -> Shape:
    """Of a model folder, of which config.json is enough; view_px is the side of the square picture."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    from .prompt import families

    if not (Path(folder) / "config.json").is_file():
        raise BadInputError(f"{folder} has no config.json: a dry run needs that, and nothing else")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
    except (OSError, ValueError, KeyError) as e:
        raise BadInputError(f"cannot build the model of {folder}/config.json: {e}") from e
    family = families.of(model)
    px = view_px or family.view_px
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    targets = [
        m
        for n, m in linear.items()
        if n.startswith(family.language + ".") and n.rsplit(".", 1)[-1] in families.LORA_TARGETS
    ]
    layer = model.get_submodule(f"{family.language}.layers.0")
    return Shape(
        type(model).__name__,
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for n, m in linear.items() if n != "lm_head" for p in m.parameters()),
        max(sum(p.numel() for p in layer.parameters()), text.vocab_size * text.hidden_size),
        sum(rank * (m.in_features + m.out_features) for m in targets),
        sum(m.in_features for m in targets) // text.num_hidden_layers,
        text.num_hidden_layers,
        text.hidden_size,
        text.num_key_value_heads * head,
        text.num_attention_heads * head,
        text.intermediate_size,
        text.vocab_size,
        picture_tokens(config, px, px),
    )


def picture_tokens(config: Any, width: int, height: int) -> int:
    """Tokens that a picture of that many pixels takes in a prompt."""
    vision = config.vision_config
    if config.model_type == "llava_next":
        return _anyres_tokens(config, width, height)
    if hasattr(vision, "spatial_merge_size"):  # Qwen2-VL and later
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        merged = vision.patch_size * vision.spatial_merge_size
        h, w = smart_resize(height, width, factor=merged, max_pixels=12845056)  # as published
        return (h // merged) * (w // merged)
    if getattr(config, "image_seq_length", None):
        return int(config.image_seq_length)
    return (vision.image_size // vision.patch_size) ** 2


def _anyres_tokens(config: Any, width: int, height: int) -> int:
    """LLaVA-1.6: the whole picture, and its tiles without padding, with a newline token a row."""
    from transformers.image_processing_utils import select_best_resolution

    tile, patch = config.vision_config.image_size, config.vision_config.patch_size
    side = tile // patch
    best_h, best_w = select_best_resolution([height, width], config.image_grid_pinpoints)
    rows, columns = side * (best_h // tile), side * (best_w // tile)
    if width / height > columns / rows:  # padded above and below
        rows -= 2 * ((rows - int(round(height * columns / width, 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * rows / height, 7))) // 2)
    return side * side + rows * columns + rows


def _kept_per_token(s: Shape, plan: Plan) -> float:
    """Bytes that one decoder layer keeps for the backward pass, per token: inputs of norms, of the projections and of
    their products (attention by SDPA or flash keeps no scores), and the fp32 copies that each adapted layer makes of
    its input, with dropout."""
    sixteen = 2 * (4 * s.hidden + 2 * s.queries + 2 * s.keys + s.queries + 4 * s.feed_forward)
    norms = 4 * 2 * s.hidden  # computed in fp32
    adapter = 0 if plan.full else 2 * 4 * s.adapter_in
    return sixteen + norms + adapter


def memory(s: Shape, w: Work, plan: Plan) -> dict[str, float]:
    """Bytes on one GPU by part, and their sum as "total" (the larger of the training and the sampling peak)."""
    trained = s.parameters if plan.full else s.adapter
    weight = 4.0 if plan.full else plan.weight_bytes
    if plan.quantized:
        weights = s.linear * NF4_BYTES + (s.parameters - s.linear) * plan.weight_bytes
    else:
        weights = s.parameters * weight
    weights += 0 if plan.full else s.adapter * 4
    gathered = 2 * s.largest_layer * weight if plan.processes > 1 else 0.0  # this layer and the next
    rows = math.ceil(w.batch / plan.processes) * w.rows
    tokens = rows * (w.prompt + w.answer)
    one_layer = tokens * _kept_per_token(s, plan)
    # With checkpointing: every layer's input, and the layer that is being recomputed.
    activations = tokens * s.hidden * 2 * s.layers + one_layer if plan.checkpointing else one_layer * s.layers
    # Logits of the answers' positions: 16 bit as computed, then fp32, its log-softmax and its gradient.
    logits = rows * (w.answer + 1) * s.vocabulary * (2 + 3 * 4)
    cache = w.sampled * (w.prompt + w.answer) * s.layers * 2 * s.keys * 2
    parts = {
        "weights": weights / plan.processes + gathered,
        "gradients": trained * 4 / plan.processes,
        "optimizer": trained * 8 / plan.processes,  # Adam's two moments in fp32
        "activations": activations,
        "logits": logits,
        "sampling cache": cache,
    }
    fixed = parts["weights"] + parts["optimizer"]
    training = fixed + parts["gradients"] + activations + logits
    # The reference is the same weights with the adapter switched off: no second model, no gradients, one layer at a
    # time, so its peak is below the training step's.
    return {**parts, "total": max(training, fixed + cache)}


def plans(precision: str, quantize: str, checkpointing: bool, full: bool, processes: int) -> list[Plan]:
    """The columns: as asked for, and what one would try instead."""
    size = 4.0 if precision == "fp32" else 2.0
    out = [
        Plan("as specified", size, quantize == "4bit", full, 1, checkpointing),
        Plan(f"LoRA, {precision}", size),
        Plan(f"LoRA, {precision}, no checkpointing", size, checkpointing=False),
        Plan("QLoRA, 4 bit", size, quantized=True),
        Plan(f"LoRA, FSDP x {processes}", size, processes=processes),
        Plan(f"all weights, FSDP x {processes}", size, full=True, processes=processes),
    ]
    return out


def _sequences(arm: str) -> int:
    """Sequences per sample of an arm of the rounds."""
    given = {**dataclasses.asdict(settings.Hyper()), **settings.ARMS.get(arm, {})}
    return 2 + 2 * len(corrupt.parse(given["corrupt"])) if given["w_pcpo"] else 2


def work(raw: dict[str, Any], s: Shape, prompt_text: int, answer: int) -> Work:
    """Of a specification, as JSON; the loops' own defaults where it says nothing."""
    h = raw.get("hyper", {})
    kind = raw.get("kind", "rounds")
    pictures = 2 if kind == "reward" else 1
    arms = [a for a in str(h.get("arms", "dpo,pcpo")).split(",") if a] if kind == "rounds" else [kind]
    rows = max(map(_sequences, arms)) if kind == "rounds" else 1
    return Work(
        products=int(h.get("products", h.get("pairs", 320))),
        epochs=int(h.get("epochs", 5)),
        arms=len(arms),
        batch=int(h.get("batch", 8)),
        rows=rows,
        prompt=pictures * s.picture_tokens + prompt_text,
        answer=answer,
        sampled=16,  # PromptModel.sample_batch of a large model
    )


def report(raw: dict[str, Any], processes: int = 4, prompt_text: int = 80, answer: int = 64) -> str:
    """The dry run of a specification as text. prompt_text and answer are tokens; a prompt's pictures come on top."""
    if not raw.get("base"):
        raise BadInputError("base: missing; a dry run is of a base model's folder (config.json is enough)")
    h = raw.get("hyper", {})
    base = Path(raw["base"])
    told = json.loads((base / "prompting.json").read_text()) if (base / "prompting.json").is_file() else {}
    rank = int(h.get("rank", 128))
    s = shape(base, rank, told.get("view_px"))
    w = work(raw, s, prompt_text, int(told.get("max_tokens", answer)))
    steps = math.ceil(w.products / w.batch)
    tokens = w.products * w.rows * (w.prompt + w.answer)
    lines = [
        f"{s.name}, {base.name}: {s.parameters:,} parameters ({s.parameters / 1e9:.2f} B); "
        f"LoRA of rank {rank}: {s.adapter:,} ({100 * s.adapter / s.parameters:.2f} %)",
        f"a prompt: {s.picture_tokens} tokens of a picture (of {w.prompt}), an answer: {w.answer}",
        f"an epoch: {w.products} samples, {steps} steps of {w.batch} x {w.rows} sequences, {tokens:,} tokens; "
        f"{w.arms} x {w.epochs} epochs: {w.arms * w.epochs * steps:,} steps, {w.arms * w.epochs * tokens:,} tokens, "
        f"and {w.arms * w.epochs * 2 * w.products:,} sampled answers",
        "",
        "GiB on one GPU (activations are an estimate, good to a third; gpu_check measures)",
    ]
    columns = plans(
        raw.get("precision", "bf16"), raw.get("quantize", ""), raw.get("checkpointing", True), rank == 0, processes
    )
    parts = [memory(s, w, p) for p in columns]
    width = max(len(p.name) for p in columns)
    lines.append(f"{'':{width}}  " + "".join(f"{k:>16}" for k in parts[0]))
    for plan, m in zip(columns, parts, strict=True):
        lines.append(f"{plan.name:{width}}  " + "".join(f"{v / GIB:16.2f}" for v in m.values()))
    return "\n".join(lines)


def main(spec: Path, processes: int = 4) -> None:
    """Prints the report of a specification file; checks nothing that a dry run does not need."""
    try:
        raw = json.loads(Path(spec).read_text())
    except (OSError, json.JSONDecodeError) as e:
        raise BadInputError(f"cannot read the specification {spec}: {e}") from e
    print(report(raw, processes))
