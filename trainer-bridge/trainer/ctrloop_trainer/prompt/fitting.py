"""The training loop of pre-training, and its checkpoints: a run that was killed ends with the weights of one that was
not.

Everything random of a step comes from (seed, stage, step) alone, so a checkpoint needs no generator states: weights,
moments of the optimizer and the number of the step are all there is.
"""

import dataclasses
import math
import random
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from ..accelerator import Accelerate
from ..errors import BadInputError, InterruptedJobError
from ..progress import Progress, check_loss, replaced
from ..spec import derive

FILE = "state.pt"
SMOOTHED = 25  # steps that a logged loss is the mean of


@dataclasses.dataclass
class State:
    """What a checkpoint holds."""

    fingerprint: str
    stage: str
    step: int  # steps done of the stage
    parameters: dict[str, torch.Tensor]
    optimizer: dict
    losses: list[float]


class Checkpoints:
    """One file, replaced whole. fingerprint is of everything that decides the run (specification and inputs)."""

    def __init__(self, folder: Path, fingerprint: str, every: int):
        self.folder, self.fingerprint, self.every = Path(folder), fingerprint, every
        self.state = self._load()

    def _load(self) -> State | None:
        path = self.folder / FILE
        if not path.is_file():
            return None
        try:
            state = State(**torch.load(path, weights_only=True))
        except Exception as e:  # cut by a kill or a full disk: the run is made again from its start
            print(f"the checkpoint {path} cannot be read ({e!r}): starting over", file=sys.stderr)
            self.remove()
            return None
        if state.fingerprint != self.fingerprint:
            raise BadInputError(
                f"the checkpoint {path} is of a run with another specification or inputs, or by another version of the "
                "trainer: give this one a folder of its own, or delete the checkpoint"
            )
        return state

    def save(self, state: State) -> None:
        """Replaces the checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with replaced(self.folder / FILE) as tmp:
            torch.save(dataclasses.asdict(state), tmp)

    def remove(self) -> None:
        """The run is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of a run. loss(step, rng) is of one batch; rng is the step's own."""

    name: str
    steps: int
    lr: float
    weight_decay: float
    warm_up: int  # steps
    loss: Callable[[int, random.Random], torch.Tensor]
    after: Callable[[int], Mapping[str, float]] | None = None  # figures to log beside the loss


def fit(
    stage: Stage,
    stages: Iterable[str],
    parameters: Mapping[str, torch.nn.Parameter],
    kept: Mapping[str, torch.nn.Parameter],
    seed: int,
    checkpoints: Checkpoints,
    progress: Progress,
    accelerate: Accelerate | None = None,
) -> list[float]:
    """Runs a stage, or what is left of it, and returns the loss of every step.

    stages are the names of the run's stages in order; parameters are trained (AdamW, cosine to 3 %, gradient norm 1);
    kept are those of earlier stages that a checkpoint must hold, too. SIGTERM leaves a checkpoint.
    """
    accelerate = accelerate or Accelerate.none()
    stages, every = list(stages), {**kept, **parameters}
    optimizer = torch.optim.AdamW(list(parameters.values()), stage.lr, weight_decay=stage.weight_decay)
    optimizer = accelerate.prepared(optimizer)
    losses, done = [], 0
    if (state := checkpoints.state) is not None:
        if stages.index(state.stage) > stages.index(stage.name):
            return []  # its result is part of what the later stage restores
        if state.stage == stage.name:
            restore(every, state.parameters)
            optimizer.load_state_dict(state.optimizer)
            losses, done = list(state.losses), state.step
            progress.log(stage=stage.name, resumed_at=done)

    def save() -> None:
        values = {k: p.detach().clone() for k, p in every.items()}
        checkpoints.save(
            State(checkpoints.fingerprint, stage.name, len(losses), values, optimizer.state_dict(), losses)
        )

    for step in range(done, stage.steps):
        try:
            progress.check_interrupted()
        except InterruptedJobError:
            save()
            raise
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * schedule(step, stage)
        torch.manual_seed(derive(seed, stage.name, step))  # dropout of a LoRA
        loss = stage.loss(step, random.Random(f"{seed}/{stage.name}/{step}"))
        check_loss(loss.item(), f"{stage.name} step {step}")
        optimizer.zero_grad()
        accelerate.backward(loss)
        accelerate.clip(list(parameters.values()), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % SMOOTHED == 0:
            more = stage.after(step) if stage.after else {}
            progress.log(stage=stage.name, step=step + 1, loss=round(sum(losses[-SMOOTHED:]) / SMOOTHED, 4), **more)
        # At the end, too: an evaluation that was killed must not cost the training.
        if checkpoints.every and ((step + 1) % checkpoints.every == 0 or step + 1 == stage.steps):
            save()
    return losses


def schedule(step: int, stage: Stage) -> float:
    """Share of the full learning rate: linear warm-up, then half a cosine down to 3 %."""
    warm = min(1.0, (step + 1) / stage.warm_up) if stage.warm_up else 1.0
    return warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / stage.steps)))


def restore(parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    """Copies a checkpoint's weights in; both must name the same parameters."""
    if set(parameters) != set(values):
        odd = sorted(set(parameters) ^ set(values))[:3]
        raise BadInputError(f"the checkpoint is of another model (it differs in {', '.join(odd)}): delete it")
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(values[name])
