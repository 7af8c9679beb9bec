"""What differs between model families: one row each, and a generic one for those that are not listed.

Everything else goes by what transformers itself offers on every image-text-to-text model: the processor, its chat
template, `logits_to_keep`, `get_input_embeddings`.

Module names are those of transformers 5 (`model.language_model...`, `lm_head` beside `model`). PEFT writes an adapter's
keys as `base_model.model.` + module name, and that is what vLLM maps onto its own modules: its weight mappers know
`model.language_model.` of LLaVA, LLaVA-NeXT and Qwen2.5-VL. The prefix matters: vLLM 0.32 loads an adapter whose
prefix or layers it does not know with status 200 and then answers like the base (the project's design, "What they
taught"); hence `adapter_problems`, and the probe after every load.
"""

import dataclasses
import re
from collections.abc import Iterable

import torch
from transformers import GenerationConfig

from ..errors import BadInputError

# Language-side linear layers, as CAIG has it. The vision sides have layers of the same names: Family.lora_exclude
# keeps them out. A list and not a regular expression, because vLLM reads target_modules as a list of names.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class Family:
    """One row of the table."""

    name: str
    architectures: tuple[str, ...]  # class names in config.json
    language: str  # module with the decoder layers
    vision: tuple[str, ...]  # modules on the picture's side, projector included: never adapted
    # Picture inputs whose first dimension counts patches of all pictures together, and the input that says how many
    # rows each picture has (as a product of its last dimension). Empty: one row a picture.
    packed: tuple[str, ...] = ()
    counts: str = ""
    view_px: int = 64  # side of a square picture that the family is at home with

    @property
    def lora_exclude(self) -> str:
        """Regular expression of modules that LoRA leaves alone (PEFT's exclude_modules): these and all below them."""
        return rf"({'|'.join(map(re.escape, self.vision))})(\..*)?"

    @property
    def adapter_prefix(self) -> str:
        """How every key of an adapter for vLLM must begin."""
        return f"base_model.model.{self.language}.layers."

    def split(self, inputs: dict[str, torch.Tensor], pictures: int) -> list[dict[str, torch.Tensor]]:
        """The image processor's output for several pictures, picture by picture; join puts it together again."""
        rows = inputs[self.counts].prod(-1).tolist() if self.counts in inputs else []
        out: list[dict[str, torch.Tensor]] = [{} for _ in range(pictures)]
        for key, value in inputs.items():
            parts = value.split(rows) if key in self.packed else value.split(1)
            if len(parts) != pictures:
                raise BadInputError(f"the processor returned {len(parts)} rows of {key} for {pictures} pictures")
            for o, part in zip(out, parts, strict=True):
                o[key] = part
        return out


LLAVA = Family(
    "llava",
    ("LlavaForConditionalGeneration",),
    "model.language_model",
    ("model.vision_tower", "model.multi_modal_projector"),
)
# LLaVA-1.6. A picture is seen whole and in tiles ("anyres"): the number of tiles and of tokens follows its shape, and
# the model needs image_sizes to take the padding off. Mistral and Vicuna flavours differ in text_config only.
LLAVA_NEXT = Family(
    "llava-1.6",
    ("LlavaNextForConditionalGeneration",),
    "model.language_model",
    ("model.vision_tower", "model.multi_modal_projector"),
    view_px=336,  # the tower's size
)
# Pictures keep their shape: a grid of patches (image_grid_thw), merged 2 x 2 into tokens. mm_token_type_ids says which
# tokens are a picture's: left out, the model counts positions in one dimension instead of three, without a word.
QWEN2_5_VL = Family(
    "qwen2.5-vl",
    ("Qwen2_5_VLForConditionalGeneration", "Qwen2VLForConditionalGeneration"),
    "model.language_model",
    ("model.visual",),
    packed=("pixel_values",),
    counts="image_grid_thw",
    view_px=336,  # 12 x 12 tokens
)
UNLISTED_VIEW_PX = 336  # of a family without a row
FAMILIES = (LLAVA, LLAVA_NEXT, QWEN2_5_VL)


def of(model: torch.nn.Module) -> Family:
    """The row of a model (by class name), or one worked out from its modules."""
    name = type(model).__name__.removeprefix("FSDP")  # accelerate's FSDP2 renames the class
    for family in FAMILIES:
        if name in family.architectures:
            return family
    return generic(model)


def of_config(architectures: Iterable[str]) -> Family | None:
    """The row of a config.json's `architectures`, None when it is not listed."""
    names = set(architectures)
    return next((f for f in FAMILIES if names & set(f.architectures)), None)


def generic(model: torch.nn.Module) -> Family:
    """A family that is not listed: the language side is the module that embeds tokens; everything beside it under
    the same parent sees pictures. One picture must be one row of every picture input, or a listed count is needed."""
    embedding = model.get_input_embeddings()
    path = next((n for n, m in model.named_modules() if m is embedding), "")
    language = path.rsplit(".", 1)[0] if "." in path else ""
    at = dict(model.named_modules())
    if not language or not any(n.startswith(f"{language}.layers.") for n in at):
        raise BadInputError(
            f"{type(model).__name__}: cannot tell its language side (decoder layers beside the token embedding); "
            "add a row to prompt/families.py"
        )
    parent, _, own = language.rpartition(".")
    children = [n for n, _ in at[parent].named_children() if n != own]
    vision = tuple(f"{parent}.{n}" if parent else n for n in children if n != "lm_head")
    if not vision:
        raise BadInputError(f"{type(model).__name__} has nothing beside its language model: it cannot see pictures")
    packed = ("pixel_values",) if hasattr(getattr(model.config, "vision_config", None), "spatial_merge_size") else ()
    counts = "image_grid_thw" if packed else ""  # as Qwen's later families have it
    return Family(type(model).__name__, (type(model).__name__,), language, vision, packed, counts, UNLISTED_VIEW_PX)


def plain_generation(model: torch.nn.Module) -> None:
    """Takes everything but the special tokens out of a loaded model's generation_config.json.

    Qwen2.5-VL's has a repetition penalty of 1.05. `generate` fills whatever a caller leaves open from there, and
    answers would not be samples of the distribution whose log-probabilities are trained. (vLLM does the same by
    default: serve with `--generation-config vllm`.)
    """
    told = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=told.bos_token_id, eos_token_id=told.eos_token_id, pad_token_id=told.pad_token_id
    )


def join(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Picture inputs of several pictures as one batch, in this order; pictures with fewer tiles are padded with
    zeros, which the model cuts off again by their sizes."""
    out = {}
    for key in parts[0] if parts else ():
        values = [p[key] for p in parts]
        shapes = {v.shape[1:] for v in values}
        if len(shapes) > 1 and len({s[1:] for s in shapes}) == 1:  # tiles
            most = max(s[0] for s in shapes)
            values = [torch.cat([v, v.new_zeros(1, most - v.shape[1], *v.shape[2:])], 1) for v in values]
        out[key] = torch.cat(values)
    return out


def adapter_problems(family: Family, keys: Iterable[str]) -> list[str]:
    """Keys that vLLM would take without a word and not apply; empty when all is well."""
    pattern = re.compile(
        re.escape(family.adapter_prefix) + r"\d+\.(self_attn|mlp)\.(" + "|".join(LORA_TARGETS) + r")\.lora_[AB]\.weight"
    )
    return sorted(k for k in keys if not pattern.fullmatch(k))
