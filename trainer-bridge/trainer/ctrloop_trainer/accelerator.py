"""The thin layer between the training loops and Hugging Face accelerate: one process or many, the same loop.

Started plainly, everything here does nothing. Started as

    accelerate launch --config_file fsdp.yaml -m ctrloop_trainer.job SPEC.json --out DIR

every process runs the same job: the same requests, pictures and random choices, each with its own renderer and its own
folder (the first one's is the result, the others write into out/processes/N). They share the work in two places only:
sampling (each answers its share, all get all answers, so that no process can take another path) and the gradient (each
computes its share of every batch). Which of DDP, FSDP or DeepSpeed it is, the configuration file says.
"""

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def launched() -> bool:
    """Whether this process was started by `accelerate launch` (or torchrun) as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


class Accelerate:
    """prepare, share, backward, clip, gather, is_main: all that a loop needs to know."""

    def __init__(self, accelerator: Any = None):
        self._a = accelerator

    @staticmethod
    def none() -> "Accelerate":
        """One process, no wrapping: the embedded case."""
        return Accelerate()

    @staticmethod
    def of(placement: Any) -> "Accelerate":
        """What this process was started as. fp16 needs accelerate's gradient scaler in one process, too."""
        if not launched() and placement.precision != "fp16":
            return Accelerate.none()
        from accelerate import Accelerator

        # Only fp16 is left to accelerate: Placement has chosen dtypes and autocast for the others.
        mixed = "fp16" if placement.precision == "fp16" else None
        return Accelerate(Accelerator(mixed_precision=mixed, cpu=placement.where.type == "cpu"))

    @property
    def processes(self) -> int:
        return self._a.num_processes if self._a else 1

    @property
    def rank(self) -> int:
        return self._a.process_index if self._a else 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes the result."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether a forward pass needs all processes (FSDP, ZeRO-3): generation must then keep step."""
        return self._a is not None and str(self._a.distributed_type).rsplit(".", 1)[-1] in ("FSDP", "DEEPSPEED")

    def prepare(self, v: Any, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Wraps a PromptModel's model and its optimizer as the configuration says; returns the optimizer to step."""
        v.accelerate = self
        if self._a is None:
            return optimizer
        if v.wrapped is not None:  # another optimizer for the same model
            return self.prepared(optimizer)
        v.wrapped, optimizer = self._a.prepare(v.model, optimizer)
        return optimizer

    def wrap(self, v: Any) -> None:
        """Wraps a PromptModel's model alone (not for DeepSpeed, which wants model and optimizer together)."""
        if self._a is not None:
            v.wrapped = self._a.prepare_model(v.model)

    def prepared(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """An optimizer of a wrapped model."""
        return optimizer if self._a is None else self._a.prepare_optimizer(optimizer)

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of items, an equal number in every process: the last ones are repeated where they do not
        come out even, since every process must take part in every forward pass."""
        if self.processes == 1:
            return list(items)
        per = -(-len(items) // self.processes)
        return [items[min(i * self.processes + self.rank, len(items) - 1)] for i in range(per)]

    def gather(self, mine: list[T]) -> list[T]:
        """All processes' lists, one after the other, the same everywhere."""
        if self.processes == 1:
            return mine
        from accelerate.utils import gather_object

        return gather_object(mine)

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of loss, averaged over the processes."""
        if self._a is None:
            loss.backward()
        else:
            self._a.backward(loss)

    def clip(self, parameters: Sequence[torch.nn.Parameter], norm: float) -> None:
        """Clips the gradient's norm, unscaling it first where fp16 scaled it."""
        if self._a is None:
            torch.nn.utils.clip_grad_norm_(parameters, norm)
        else:
            self._a.clip_grad_norm_(parameters, norm)

    def state_dict(self, v: Any) -> dict[str, torch.Tensor] | None:
        """The whole weights of a sharded model, gathered (all processes must ask); None: the model has them."""
        return self._a.get_state_dict(v.wrapped) if self.sharded and v.wrapped is not None else None
