"""What weights must be before they are written or loaded: finite, and of a size that training can have led to.

A server takes NaN without a word and answers with it, also where requests for other adapters share its batch. So
nothing that is not finite leaves a job, and no job starts from it.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .errors import BadInputError, DivergedError

# Norm of what an adapter adds to a layer over the layer's own. Sound adapters have 0.01 to 0.5; at 10 nothing of the
# base is left.
MAX_SHARE = 10.0


def load(path: Path, what: str) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file by name; BadInputError where it is cut, its header lies, or one is not finite."""
    try:
        state = load_file(path)
    except (OSError, RuntimeError, ValueError, SafetensorError) as e:
        raise BadInputError(f"cannot load {what} in {path.parent}: {e}") from e
    check(state.items(), f"{what} in {path.parent}")
    return state


def not_finite(named: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Name of the first tensor with a NaN or an infinity."""
    return next((n for n, x in named if x.is_floating_point() and not torch.isfinite(x).all()), None)


def check(named: Iterable[tuple[str, torch.Tensor]], where: object) -> None:
    """BadInputError when a weight that was read is NaN or infinite: such a model answers garbage without complaint."""
    if (name := not_finite(named)) is not None:
        raise BadInputError(f"weights of {where} are not finite ({name}): the model is broken, use another")


def check_made(named: Iterable[tuple[str, torch.Tensor]], what: str) -> None:
    """DivergedError when a weight that a job is about to write is NaN or infinite."""
    if (name := not_finite(named)) is not None:
        raise DivergedError(f"weights of {what} are not finite ({name}): lower the learning rate or look at the data")


def check_adapter(model: torch.nn.Module) -> None:
    """DivergedError when a LoRA on a model (PEFT's) is not finite, or adds MAX_SHARE times a layer's own weights."""
    if problem := adapter_problem(model):
        raise DivergedError(f"the adapter {problem}: lower the learning rate or look at the data")


@torch.no_grad()
def adapter_problem(model: torch.nn.Module, only: str = "") -> str | None:
    """What is wrong with the LoRAs on a model, or with the one of a name: a number that is not finite, or MAX_SHARE
    times a layer's own weights added to it."""
    named = ((n, p) for n, p in model.named_parameters() if ".lora_" in n and (not only or f".{only}." in n))
    if (bad := not_finite(named)) is not None:
        return f"has weights that are not finite ({bad})"
    for name, layer in model.named_modules():
        if not hasattr(layer, "lora_A") or not hasattr(layer, "get_base_layer"):
            continue
        base = layer.get_base_layer().weight
        if base.dtype.itemsize < 2 or base.device.type == "meta" or base.ndim != 2:
            continue  # quantised weights are packed: their norm says nothing
        for adapter in layer.lora_A if not only else [only] if only in layer.lora_A else []:
            added = delta_norm(layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter])
            own = base.float().norm().item()
            if own and added > MAX_SHARE * own:
                return f"adds {added / own:.0f} times the weights of {name}"
    return None


def delta_norm(a: torch.Tensor, b: torch.Tensor, scale: float) -> float:
    """Frobenius norm of scale B A, without forming it: A is (rank, in), B is (out, rank)."""
    a, b = a.float(), b.float()
    return abs(scale) * max(((b.T @ b) * (a @ a.T)).sum().item(), 0.0) ** 0.5
