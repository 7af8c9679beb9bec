"""One epoch of preference learning on a LoRA: rows of a batch, the loss, the steps, checkpoints between them.

Whatever is random follows from the job's seed, the epoch and the step, so that a job that was killed anywhere ends
with the same bits as one that was not.
"""

import dataclasses
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import losses
from ..accelerator import Accelerate
from ..errors import BadInputError, InterruptedJobError
from ..progress import Progress, check_loss, replaced
from ..prompt.model import Ask, PromptModel
from ..spec import derive
from .draw import Sample, draw, drop_masks, show_masks
from .settings import Hyper
from .shop import Shop


class BrokenCheckpointError(Exception):
    """A checkpoint that a kill or a full disk has cut."""


CHOSEN, REJECTED, CORRUPTED = range(3)  # rows of every (rows, samples) tensor of log-probabilities: see rows()


def rows(batch: Sequence[Sample], product_centric: bool) -> tuple[list[Ask], list[str]]:
    """Requests and answers of one forward pass: y+|x, y-|x and, product-centric, the same y+ under every x~, then
    under every x~ what else there is to say."""
    asks, chosen, rejected = [s.ask for s in batch], [s.chosen for s in batch], [s.rejected for s in batch]
    if not product_centric:
        return asks * 2, chosen + rejected
    ways = list(zip(*(s.corrupted for s in batch), strict=True))  # (x~ of a sample, samples)
    corrupted = [c.ask for way in ways for c in way]
    elsewhere = [c.elsewhere for way in ways for c in way]
    return asks * 2 + corrupted * 2, chosen + rejected + chosen * len(ways) + elsewhere


def logps(v: PromptModel, batch: Sequence[Sample], product_centric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of log-probabilities and lengths in tokens, both (rows, samples)."""
    logp, length = v.token_logps(*rows(batch, product_centric))
    return logp.sum(1).view(-1, len(batch)), length.view(-1, len(batch))


def loss_of(
    logp: torch.Tensor, ref: torch.Tensor, length: torch.Tensor, p: torch.Tensor, h: Hyper
) -> tuple[torch.Tensor, dict[str, float]]:
    """w_dpo L_DPO + w_pcpo L_PCPO + w_anchor L_anchor + w_nll L_nll + w_form L_form, and the parts by name.

    L_form is the per-token likelihood of another product's y+ under x~: PCPO takes y+|x~ away, and what it frees must
    go to something well-formed.

    logp, ref and length are (rows, samples) as logps() gives them, p is (samples,).
    """
    chosen = logp[CHOSEN]
    moved = logp - ref
    soft = p if h.soft_labels else None
    parts = {
        "dpo": (h.w_dpo, losses.dpo(chosen, logp[REJECTED], ref[CHOSEN], ref[REJECTED], h.beta, soft)),
        "nll": (h.w_nll, losses.token_nll(chosen, length[CHOSEN])),
    }
    about = {"chosen": moved[CHOSEN].mean().item(), "rejected": moved[REJECTED].mean().item()}
    if len(logp) > CORRUPTED:
        ways = (len(logp) - CORRUPTED) // 2
        corrupted, elsewhere = slice(CORRUPTED, CORRUPTED + ways), slice(CORRUPTED + ways, None)
        # Means over all x~: their number is not a weight.
        parts["pcpo"] = (h.w_pcpo, losses.pcpo(chosen, logp[corrupted], ref[CHOSEN], ref[corrupted], h.beta_pcpo))
        parts["form"] = (h.w_form, losses.token_nll(logp[elsewhere], length[elsewhere]))
        about["corrupted"] = moved[corrupted].mean().item()
    if h.w_anchor:
        parts["anchor"] = (h.w_anchor, losses.anchor(chosen, ref[CHOSEN], h.beta))
    # A weight of zero leaves a term out of the sum: 0 * inf would be NaN.
    loss = sum(w * x for w, x in parts.values() if w)
    return loss, {"loss": float(loss), **{k: x.item() for k, (_, x) in parts.items()}, **about}


def learning_rate(h: Hyper, epoch: int, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to 5 %, within each epoch; each epoch begins lower than the one before."""
    warm = min(1.0, (step + 1) / h.warmup) if h.warmup else 1.0
    return h.lr * h.decay ** (epoch - 1) * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@dataclasses.dataclass
class Running:
    """An epoch under way: everything that its remaining steps need besides weights and optimiser."""

    epoch: int
    step: int  # finished ones
    samples: list[Sample]
    about: dict[str, Any]  # of the drawing
    reference: torch.Tensor  # (rows, samples), under epoch 0
    curve: list[dict[str, float]]


class Learner:
    """A model with an adapter, its optimiser, and the epoch it is in."""

    def __init__(self, v: PromptModel, shop: Shop, h: Hyper, seed: int, file: Path, progress: Progress, arm: str):
        self.v, self.shop, self.h, self.seed, self.file = v, shop, h, seed, file
        self.progress, self.arm = progress, arm
        self.running: Running | None = None
        self.parameters = {n: p for n, p in v.model.named_parameters() if p.requires_grad}
        # One optimiser for all epochs: a fresh Adam per epoch kicks the weights while its moments fill.
        v.accelerate = Accelerate.of(v.placement)
        self.optimizer = self._fresh()

    def _fresh(self) -> torch.optim.Optimizer:
        adam = torch.optim.AdamW(self.parameters.values(), self.h.lr, betas=(0.9, 0.98), weight_decay=0.0)
        prepared = self.v.accelerate.prepare(self.v, adam)
        # FSDP puts shards in the place of parameters.
        self.parameters = {n: p for n, p in self.v.model.named_parameters() if p.requires_grad}
        return prepared

    def epoch(self, number: int) -> dict[str, Any]:
        """Draws and learns an epoch, or what is left of it. Returns the means over the later half of its steps."""
        if self.running is None or self.running.epoch != number:
            self._begin(number)
        run = self.running
        show_masks(self.v, self.shop, self.h, run.samples)
        order = list(range(len(run.samples)))
        random.Random(f"order/{self.seed}/{number}").shuffle(order)
        steps = math.ceil(len(order) / self.h.batch)
        for step in range(run.step, steps):
            self._pause()
            self._rate(learning_rate(self.h, number, step, steps))
            torch.manual_seed(derive(self.seed, "dropout", number, step))
            point = self._step(order[step * self.h.batch : (step + 1) * self.h.batch])
            where = f"arm {self.arm}, epoch {number}, step {step}"
            check_loss(point["loss"], where)
            run.curve.append(point)
            run.step = step + 1
            told = {k: round(x, 4) for k, x in point.items()}
            self.progress.log(stage="rounds", arm=self.arm, epoch=number, step=step, **told)
            if run.step % self.h.checkpoint == 0 or run.step == steps:
                self.save()
        self.v.model.eval()
        drop_masks(self.v, run.samples)
        later = run.curve[len(run.curve) // 2 :]
        return {**{k: float(np.mean([x[k] for x in later])) for k in later[0]}, "samples": run.about}

    def _begin(self, number: int) -> None:
        if self.h.fresh_optimizer:
            self.optimizer = self._fresh()
        samples, about = draw(self.v, self.shop, self.h, self.seed, number)
        show_masks(self.v, self.shop, self.h, samples)
        self.running = Running(number, 0, samples, about, self.reference(samples), [])
        self.save()

    @torch.no_grad()
    def reference(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Log-probabilities under the base, which is the reference in every epoch: (rows, samples)."""
        self.v.model.eval()
        with self.v.model.disable_adapter():
            parts = [logps(self.v, samples[i : i + 32], self.h.product_centric)[0] for i in range(0, len(samples), 32)]
        return torch.cat(parts, 1)

    def _step(self, at: list[int]) -> dict[str, float]:
        """One update on the samples at these positions."""
        at = self.v.accelerate.share(at)
        self.v.model.train()
        batch = [self.running.samples[i] for i in at]
        logp, length = logps(self.v, batch, self.h.product_centric)
        p = torch.tensor([s.p for s in batch], dtype=logp.dtype, device=logp.device)
        loss, point = loss_of(logp, self.running.reference[:, at].to(logp.device), length, p, self.h)
        self.optimizer.zero_grad()
        self.v.accelerate.backward(loss)
        self.v.accelerate.clip(list(self.parameters.values()), 1.0)
        self.optimizer.step()
        return point

    def _rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    # ---- checkpoints

    def _pause(self) -> None:
        try:
            self.progress.check_interrupted()
        except InterruptedJobError:
            self.save()
            raise

    def save(self) -> None:
        """Writes the checkpoint: whole or not at all."""
        run = self.running
        self.file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "epoch": run.epoch,
            "step": run.step,
            "samples": [dataclasses.asdict(s) for s in run.samples],
            "about": run.about,
            "reference": run.reference,
            "curve": run.curve,
            "adapter": {n: p.detach() for n, p in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        with replaced(self.file) as tmp:
            torch.save(state, tmp)

    def restore(self) -> int:
        """Takes up the checkpoint, if there is one; returns the number of its epoch, else 0."""
        if not self.file.is_file():
            return 0
        try:
            state = torch.load(self.file, map_location="cpu", weights_only=True)
            saved = state["adapter"]
            if {n: p.shape for n, p in saved.items()} != {n: p.shape for n, p in self.parameters.items()}:
                raise BadInputError(f"{self.file} is of another base or rank: use a new folder")
            samples = [Sample.restored(s) for s in state["samples"]]
            running = Running(
                state["epoch"], state["step"], samples, state["about"], state["reference"], state["curve"]
            )
            self.optimizer.load_state_dict(state["optimizer"])
        except BadInputError:
            raise
        except Exception as e:  # torch.load raises many kinds for a file that is cut
            raise BrokenCheckpointError(f"cannot go on from {self.file}: {e!r}") from e
        with torch.no_grad():
            for n, p in self.parameters.items():
                p.copy_(saved[n])
        self.running = running
        self.progress.log(stage="resumed", arm=self.arm, epoch=running.epoch, step=running.step)
        return running.epoch
