"""Where a model lies and in which numbers it computes: the spec's device, precision, quantize and checkpointing.

Rules, and why:

* An adapter over a frozen base: the base's weights are held in the precision asked for (bf16 halves a 7 B model to
  15 GB), the adapter's in fp32 (PEFT does that), so that small steps are not rounded away.
* Full fine-tuning: weights stay in fp32 and the forward pass is autocast; AdamW on bf16 weights loses every step that
  is smaller than 1/256 of its weight.
* fp16 is for old GPUs (no bf16): its gradients need scaling, which accelerate does; never on a CPU.
* QLoRA (quantize "4bit"): NF4 weights, double quantised, computing in the precision asked for (Dettmers 2023).
"""

import contextlib
import dataclasses
import importlib.util
import os
from typing import Any

import torch

from .errors import BadInputError

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
QUANTIZATIONS = ("", "4bit")


@dataclasses.dataclass(frozen=True)
class Placement:
    """Checked by check(); the defaults are the embedded model's."""

    device: str = "cpu"  # one of DEVICES; auto: a GPU where there is one
    precision: str = "fp32"  # one of PRECISIONS
    quantize: str = ""  # one of QUANTIZATIONS
    checkpointing: bool = False  # recompute activations in the backward pass: a third more time, far less memory
    full: bool = False  # every weight is trained, not an adapter

    @staticmethod
    def of(spec: Any, full: bool = False) -> "Placement":
        """That of a job's specification."""
        return Placement(spec.device, spec.precision, spec.quantize, spec.checkpointing, full).check()

    def check(self) -> "Placement":
        """Itself, or BadInputError with what is wrong and what to do."""
        if self.device not in DEVICES:
            raise BadInputError(f"device: {self.device!r} is unknown, use one of {', '.join(DEVICES)}")
        if self.precision not in PRECISIONS:
            raise BadInputError(f"precision: {self.precision!r} is unknown, use one of {', '.join(PRECISIONS)}")
        if self.quantize not in QUANTIZATIONS:
            raise BadInputError(f"quantize: {self.quantize!r} is unknown, use 4bit or leave it out")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise BadInputError("device: cuda was asked for and there is no GPU here; use auto or cpu")
        if self.precision == "fp16" and self.where.type == "cpu":
            raise BadInputError("precision: fp16 cannot be trained on a CPU; use bf16 or fp32")
        if self.quantize:
            self._check_quantize()
        return self

    def _check_quantize(self) -> None:
        if self.full:
            raise BadInputError("quantize: 4-bit weights cannot be trained themselves; train an adapter (LoRA) on them")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise BadInputError(
                "quantize: 4bit needs the package bitsandbytes, which is not installed; on a machine with an NVIDIA "
                "GPU install requirements-gpu.in on top of requirements.txt"
            )
        if self.where.type != "cuda":
            raise BadInputError("quantize: 4bit needs an NVIDIA GPU; leave it out on a CPU")

    @property
    def where(self) -> torch.device:
        """The device of this process: under `accelerate launch` each process has its own GPU."""
        cuda = self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights in memory."""
        return torch.float32 if self.full else PRECISIONS[self.precision]

    def loading(self) -> dict[str, Any]:
        """Arguments for from_pretrained."""
        out: dict[str, Any] = {"local_files_only": True, "dtype": self.dtype}
        if self.quantize:
            from transformers import BitsAndBytesConfig

            out["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=PRECISIONS[self.precision],
            )
            out["device_map"] = {"": self.where}  # quantised while it is read: the 16-bit weights never lie there
        return out

    def place(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model on its device, with gradient checkpointing as asked."""
        if not self.quantize and self.where.type != "cpu":
            model = model.to(self.where)
        if self.checkpointing:
            # Not reentrant: the inputs of a frozen base carry no gradient, which the reentrant kind needs.
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        return model

    def computing(self) -> contextlib.AbstractContextManager:
        """Context of a forward pass: autocast where fp32 weights are to compute in fewer bits."""
        if self.full and self.precision != "fp32":
            return torch.autocast(self.where.type, PRECISIONS[self.precision])
        return contextlib.nullcontext()
