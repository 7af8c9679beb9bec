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
from .prompt.model import Prompting, sample_batch
from .rounds import corrupt, settings
from .spec import hyper

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


def shape(folder: Path, rank: int) -> Shape:
    """Of a model folder, of which config.json is enough, for pictures of its own view."""
    return described(folder, rank)[0]


def described(folder: Path, rank: int) -> tuple[Shape, Prompting]:
    """shape(), and how the model will be asked: the same place that the jobs and the server ask."""
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
    prompting = Prompting.of(folder, family)
    px = prompting.view_px
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    targets = [
        m
        for n, m in linear.items()
        if n.startswith(family.language + ".") and n.rsplit(".", 1)[-1] in families.LORA_TARGETS
    ]
    layer = model.get_submodule(f"{family.language}.layers.0")
    told = Shape(
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
    return told, prompting


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
    """The columns: as asked for, and what one would try instead (in 16 bits, with checkpointing)."""
    size = 4.0 if precision == "fp32" else 2.0
    half = "bf16" if precision == "fp32" else precision
    out = [
        Plan("as specified", size, quantize == "4bit", full, 1, checkpointing),
        Plan(f"LoRA, {half}"),
        Plan(f"LoRA, {half}, no checkpointing", checkpointing=False),
        Plan("QLoRA, 4 bit", quantized=True),
        Plan(f"LoRA, FSDP x {processes}", processes=processes),
        Plan(f"all weights, FSDP x {processes}", full=True, processes=processes),
    ]
    return out


@dataclasses.dataclass(frozen=True)
class Loop:
    """What a job's training loop does, from the very settings that it will run with."""

    samples: int  # per epoch
    epochs: int
    arms: int
    batch: int
    rows: int  # sequences per sample
    pictures: int  # per sequence
    answers: bool  # whether sequences end with an answer
    written: int  # answers sampled per epoch and arm
    rank: int  # of the LoRA
    full: bool  # all weights are trained


def loop(raw: dict[str, Any]) -> Loop:
    """Of a specification, as JSON; BadInputError as the job would raise it, or where nothing large is trained."""
    kind, h = raw.get("kind", "rounds"), dict(raw.get("hyper") or {})
    if kind == "rounds":
        return _rounds(hyper(settings.Hyper, h))
    if kind == "pretrain":
        return _pretraining(h)
    if kind == "describe":
        return _describing(h)
    if kind in ("reward", "evaluate"):
        from .reward import train

        return _two_images(*train.mllm_settings(kind, h))
    raise BadInputError(f"kind: a {kind} job trains no language model, there is nothing to estimate")


def _rounds(h: settings.Hyper) -> Loop:
    settings.check(h)
    arms = [settings.arm_hyper(h, a) for a in settings.arm_names(h)]
    largest = max(arms, key=lambda a: a.products * _sequences(a))
    written = max(a.products * a.descriptions for a in arms)
    return Loop(largest.products, h.epochs, len(arms), h.batch, max(map(_sequences, arms)), 1, True, written, h.rank,
                False)  # fmt: skip


def _sequences(h: settings.Hyper) -> int:
    """Sequences per sample of an arm: y+, y- and, with x~, y+ and another answer under each."""
    return 2 + 2 * len(corrupt.parse(h.corrupt)) if h.product_centric else 2


def _pretraining(given: dict[str, Any]) -> Loop:
    from .prompt import pretrain

    h = hyper(pretrain.Hyper, given)
    return Loop(h.steps * h.batch, 1, 1, h.batch, 1, 1, True, 0, h.rank, h.tuning != "lora")


def _describing(given: dict[str, Any]) -> Loop:
    from .prompt import describe

    return Loop(0, 1, 1, 1, 0, 1, True, hyper(describe.Hyper, given).samples, 0, False)


def _two_images(h: Any, copies: int) -> Loop:
    """The two-image reward model: every pair in both orders, two pictures a sequence, no answer."""
    return Loop(h.pairs, h.epochs, copies, h.batch, 2, 2, False, 0, h.rank, h.rank == 0)


def work(raw: dict[str, Any], s: Shape, prompt_text: int, answer: int) -> Work:
    """Of a specification, as JSON."""
    job = loop(raw)
    return Work(
        products=job.samples,
        epochs=job.epochs,
        arms=job.arms,
        batch=job.batch,
        rows=job.rows,
        prompt=job.pictures * s.picture_tokens + prompt_text,
        answer=answer if job.answers else 0,
        sampled=sample_batch(s.parameters) if job.written else 0,
    )


def _reward_bytes(raw: dict[str, Any]) -> float:
    """Weights of two-image reward models that lie beside the base while the job runs."""
    total = 0.0
    for field in ("reward_model", "referee_model"):
        file = Path(raw[field]) / "reward.json" if raw.get(field) else None
        about = json.loads(file.read_text()) if file and file.is_file() else {}
        if about.get("form") != "mllm":
            continue
        if about.get("merged"):
            total += sum(f.stat().st_size for f in (file.parent / "model").glob("*.safetensors"))
        else:
            size = 4.0 if raw.get("precision", "fp32") == "fp32" else 2.0
            base = shape(Path(raw.get("reward_base") or raw["base"]), 1)
            four = raw.get("quantize") == "4bit"
            total += (
                base.linear * NF4_BYTES + (base.parameters - base.linear) * size if four else base.parameters * size
            )
    return total


def report(raw: dict[str, Any], processes: int = 4, prompt_text: int = 80) -> str:
    """The dry run of a specification as text. prompt_text is the tokens of a prompt's words; its pictures, and the most
    that an answer may have, are the model's own."""
    if not raw.get("base"):
        raise BadInputError("base: missing; a dry run is of a base model's folder (config.json is enough)")
    base, job = Path(raw["base"]), loop(raw)
    s, prompting = described(base, job.rank)
    w = work(raw, s, prompt_text, prompting.max_tokens)
    steps = math.ceil(w.products / w.batch)
    tokens = w.products * w.rows * (w.prompt + w.answer)
    tuned = "all weights" if job.full else f"LoRA of rank {job.rank}: {s.adapter:,}"
    share = "" if job.full else f" ({100 * s.adapter / s.parameters:.2f} %)"
    lines = [
        f"{s.name}, {base.name}: {s.parameters:,} parameters ({s.parameters / 1e9:.2f} B); {tuned}{share}",
        f"a picture of {prompting.view_px} px: {s.picture_tokens} tokens (of {w.prompt} in a prompt), "
        f"an answer: {w.answer}",
        f"an epoch: {w.products} samples, {steps} steps of {w.batch} x {w.rows} sequences, {tokens:,} tokens; "
        f"{w.arms} x {w.epochs} epochs: {w.arms * w.epochs * steps:,} steps, {w.arms * w.epochs * tokens:,} tokens, "
        f"and {w.arms * w.epochs * job.written:,} sampled answers",
        "",
        "GiB on one GPU (activations are an estimate, good to a third; gpu_check measures)",
    ]
    columns = plans(
        raw.get("precision", "fp32"), raw.get("quantize", ""), raw.get("checkpointing", False), job.full, processes
    )
    beside = _reward_bytes(raw)
    parts = [memory(s, w, p) for p in columns]
    if beside:
        parts = [{**p, "reward models": beside, "total": p["total"] + beside} for p in parts]
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
