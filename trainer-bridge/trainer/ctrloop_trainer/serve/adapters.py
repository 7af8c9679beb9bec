"""LoRA adapters, held against the base before they are loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .errors import add_lora_failed, invalid_input

LORA_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")


@dataclasses.dataclass
class Adapter:
    name: str
    path: str  # as given by the client
    internal: str  # PEFT's name for it: ours may hold characters that a module name must not
    digest: str
    created: int


def adapter_digest(folder: Path) -> str:
    h = hashlib.sha256()
    for f in ("adapter_config.json", "adapter_model.safetensors"):
        h.update(hashlib.sha256((folder / f).read_bytes()).digest())
    return h.hexdigest()


def check_adapter(folder: Path, shapes: dict[str, tuple[int, int]], max_rank: int) -> set[str]:
    """Holds an adapter against the base's linear layers {module: (out, in)}; returns its keys. Raises ApiError."""
    cfg = json.loads((folder / "adapter_config.json").read_text())
    if cfg.get("peft_type") != "LORA":
        raise add_lora_failed(f"peft_type {cfg.get('peft_type')} is not LORA.")
    if cfg.get("use_dora"):
        raise add_lora_failed("this server does not yet support DoRA.")
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise add_lora_failed(f"{folder} doesn't contain tensors")
    try:
        with safe_open(weights, "pt") as f:
            found = {k: tuple(f.get_slice(k).get_shape()) for k in f.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as e:
        raise add_lora_failed(str(e)) from e
    if not found:
        raise add_lora_failed(f"{folder} doesn't contain tensors")
    suffixes = {m.rsplit(".", 1)[-1] for m in shapes}
    matched = {k: LORA_KEY.match(k) for k in found}
    unknown = sorted(m["module"] for m in matched.values() if m and m["module"].rsplit(".", 1)[-1] not in suffixes)
    if unknown:
        raise add_lora_failed(
            f"While loading {folder}, expected target modules in {suffixes} but received {unknown[:4]}."
        )
    for key, shape in sorted(found.items()):
        m = matched[key]
        if m is None or m["module"] not in shapes:
            raise invalid_input(
                f"The lora adapter has the key '{key}', which names no linear layer of the base model: it would not be "
                f"applied. Expected keys like 'base_model.model.{next(iter(shapes))}.lora_A.weight'."
            )
        out, inp = shapes[m["module"]]
        rank = shape[0 if m["side"] == "A" else 1] if len(shape) == 2 else -1
        want = (rank, inp) if m["side"] == "A" else (out, rank)
        if shape != want or rank < 1:
            raise invalid_input(
                f"The lora adapter's '{key}' has shape {list(shape)}, the base model's layer needs {list(want)}."
            )
        if rank > max_rank:
            raise add_lora_failed(f"LoRA rank {rank} is greater than max_lora_rank {max_rank}.")
        other = f"base_model.model.{m['module']}.lora_{'B' if m['side'] == 'A' else 'A'}.weight"
        if other not in found or found[other][1 if m["side"] == "A" else 0] != rank:
            raise invalid_input(f"The lora adapter's '{key}' has no matching '{other}' of rank {rank}.")
    return set(found)
