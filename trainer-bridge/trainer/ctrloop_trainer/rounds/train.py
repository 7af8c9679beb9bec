"""Preference rounds: sample two descriptions, render, let the reward model rank, DPO or DPO + w PCPO on a LoRA.

Both arms start from the same base, see the same products and use the same seeds. The reference is the base (epoch 0)
in every epoch. An epoch's folder is the unit of resumption: whatever is random in an epoch follows from the seed and
the epoch's number, and the optimiser's state lies beside it.
"""

import dataclasses
import json
import math
import os
import random
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from .. import losses
from ..data import Product, bootstrap_interval, load_catalogue, split
from ..digest import dir_digest
from ..errors import BadInputError
from ..grammar import Grammar
from ..matching import text_figures
from ..progress import Progress, check_loss, write_json, write_lines
from ..prompt.model import LORA_EXCLUDE, LORA_TARGETS, Ask, PromptModel, check_finite, question
from ..render import Renderer, Shot
from ..reward.scorer import RewardModel, both_orders
from ..spec import Spec, derive, hyper
from . import gates, probe
from .corrupt import mask_patches, other_product


@dataclasses.dataclass
class Hyper(gates.Thresholds):
    """Chosen on worlds that are not reported on."""

    arms: str = "dpo,pcpo"
    epochs: int = 4
    products: int = 320  # per epoch, hue variants included
    batch: int = 8  # many small updates beat few large ones
    lr: float = 1e-3  # of the embedded model; a 7 B model wants 2e-5
    rank: int = 16  # alpha is twice the rank
    dropout: float = 0.05
    beta: float = 0.3
    beta_pcpo: float = 0.3
    w_pcpo: float = 1.0
    w_nll: float = 4.0  # per-token likelihood of y+: without it answers lose their form under DPO
    w_anchor: float = 0.0
    mask_share: float = 0.75
    mask_patch: int = 8  # px of the 64 px view
    tau: float = -1.0  # abstention of the ranking; negative: as the reward model was trained
    held_samples: int = 8  # descriptions per held-out product and epoch
    probes: int = 12  # candidates for the probe


@dataclasses.dataclass(frozen=True)
class Sample:
    """One training sample of an epoch: x, x~, y+, y-."""

    product: str
    ask: Ask
    corrupted: Ask
    how: str  # "mask" or "caption"
    chosen: str
    rejected: str
    p: float  # of the chosen, by the reward model


class Rounds:
    """What both arms share: base model, renderer, reward models, products."""

    def __init__(self, spec: Spec, h: Hyper, out: Path, renderer: Renderer, progress: Progress):
        self.spec, self.h, self.out, self.renderer, self.progress = spec, h, out, renderer, progress
        self.grammar = Grammar.load(Path(spec.grammar))
        self.train, self.held = split(load_catalogue(Path(spec.catalogue)))
        self.reward = RewardModel.load(Path(spec.reward_model))
        self.referee = RewardModel.load(Path(spec.referee_model)) if spec.referee_model else None
        self.tau = h.tau if h.tau >= 0 else self.reward.tau
        everything = [*self.train, *self.held]
        plain = renderer.render([Shot(p.id, "") for p in everything])[0]
        self.plain = {p.id: image for p, image in zip(everything, plain, strict=True)}
        self.base_samples: list[str] = []
        self.base_figures: dict[str, Any] = {}
        self._base_scores: dict[str, np.ndarray] = {}

    def load_base(self) -> PromptModel:
        """A fresh copy of the base, with every plain view registered."""
        v = PromptModel.load(Path(self.spec.base))
        keys = list(self.plain)
        v.add_images(keys, np.stack([self.plain[k] for k in keys]))
        return v

    def adapted(self) -> PromptModel:
        """The base with a fresh LoRA on the language side, the same one for every arm."""
        v = self.load_base()
        torch.manual_seed(derive(self.spec.seed, "adapter"))
        config = LoraConfig(
            r=self.h.rank,
            lora_alpha=2 * self.h.rank,
            lora_dropout=self.h.dropout,
            target_modules=LORA_TARGETS,
            exclude_modules=LORA_EXCLUDE,
            task_type="CAUSAL_LM",
            base_model_name_or_path="prompt-base",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the name of the base, which is set right below
            v.model = get_peft_model(v.model, config)
        # get_peft_model writes the folder's path there: it would put a machine path into every artifact.
        v.model.peft_config["default"].base_model_name_or_path = "prompt-base"
        return v

    # ---- held-out figures

    def held_asks(self) -> tuple[list[Product], list[Ask]]:
        """The same requests in every epoch and arm."""
        rng = random.Random(f"held/{self.spec.seed}")
        rows = [p for p in self.held for _ in range(self.h.held_samples)]
        instructions = self.instructions
        return rows, [Ask(question(p.caption, rng.choice(instructions)), p.id) for p in rows]

    @property
    def instructions(self) -> tuple[str, ...]:
        return self._instructions

    def start(self) -> None:
        """Epoch 0: samples and figures of the base."""
        v = self.load_base()
        self._instructions = v.prompting.instructions
        rows, asks = self.held_asks()
        self.base_samples = v.sample(asks, derive(self.spec.seed, "held"))
        self.base_figures = {**text_figures(rows, self.base_samples, self.grammar), "kl": 0.0, "epoch": 0}
        self._base_scores = self._scores(rows, self.base_samples)

    def _scores(self, rows: list[Product], texts: list[str]) -> dict[str, np.ndarray]:
        # The drawing seed follows the row, so that base and epoch differ by their descriptions only.
        shots = [Shot(p.id, t, 100_000 + i) for i, (p, t) in enumerate(zip(rows, texts, strict=True))]
        images, _ = self.renderer.render(shots)
        captions = [p.caption for p in rows]
        judges = {"reward": self.reward, "referee": self.referee}
        return {name: j.scores(captions, images) for name, j in judges.items() if j}

    def held_figures(self, v: PromptModel, epoch: int) -> tuple[dict[str, Any], list[str]]:
        """Figures of an epoch on products that training never saw; gains are in log-odds over the base's samples."""
        rows, asks = self.held_asks()
        texts = v.sample(asks, derive(self.spec.seed, "held"))
        out = text_figures(rows, texts, self.grammar)
        scores = self._scores(rows, texts)
        for name, s in scores.items():
            gain = (s - self._base_scores[name]).reshape(len(self.held), -1).mean(1)
            out[f"{name}_gain"] = float(gain.mean())
            out[f"{name}_gain_low"], out[f"{name}_gain_high"] = bootstrap_interval(gain)
        out["kl"] = self._kl(v, asks, texts)
        out["words"] = float(np.mean([len(t.split()) for t in texts]))
        return {"epoch": epoch, **out}, texts

    @torch.no_grad()
    def _kl(self, v: PromptModel, asks: list[Ask], texts: list[str]) -> float:
        """Nats per description away from the base: mean logp - ref over the model's own samples."""
        v.model.eval()
        total = 0.0
        for i in range(0, len(asks), 64):
            a, t = asks[i : i + 64], texts[i : i + 64]
            mine = v.logps(a, t)
            with v.model.disable_adapter():
                total += float((mine - v.logps(a, t)).sum())
        return total / len(asks)

    # ---- one epoch

    def samples(self, v: PromptModel, epoch: int) -> tuple[list[Sample], dict[str, Any]]:
        """Builds an epoch's samples: two descriptions per product, same drawing seed, ranked in both orders."""
        rng = random.Random(f"epoch/{self.spec.seed}/{epoch}")
        chosen = [rng.choice(self.train) for _ in range(self.h.products)]
        if len(self.train) >= self.h.products:
            chosen = rng.sample(self.train, self.h.products)
        asks = [Ask(question(p.caption, rng.choice(self.instructions)), p.id) for p in chosen]
        texts = v.sample(asks + asks, derive(self.spec.seed, "sample", epoch))
        a, b = texts[: len(asks)], texts[len(asks) :]
        parsed = [
            self.grammar.parse(x) is not None and self.grammar.parse(y) is not None for x, y in zip(a, b, strict=True)
        ]
        keep = [i for i in range(len(asks)) if parsed[i] and a[i] != b[i]]
        about = {"asked": len(asks), "invalid": len(asks) - sum(parsed), "identical": sum(parsed) - len(keep)}
        if not keep:
            raise BadInputError(
                f"epoch {epoch}: no product got two different well-formed descriptions: is the base trained?"
            )
        seeds = [rng.randrange(1 << 30) for _ in keep]
        left, _ = self.renderer.render([Shot(chosen[i].id, a[i], s) for i, s in zip(keep, seeds, strict=True)])
        right, _ = self.renderer.render([Shot(chosen[i].id, b[i], s) for i, s in zip(keep, seeds, strict=True)])
        judged = both_orders(self.reward, [chosen[i].caption for i in keep], left, right)
        out = []
        for i, p in zip(keep, judged.p_left, strict=True):
            if abs(p - 0.5) <= self.tau:
                continue
            hi, lo = (a[i], b[i]) if p > 0.5 else (b[i], a[i])
            corrupted, how = self._corrupt(v, chosen[i], asks[i], (epoch, len(out)), rng)
            out.append(Sample(chosen[i].id, asks[i], corrupted, how, hi, lo, float(max(p, 1 - p))))
        about |= {"ties": len(keep) - len(out), "pairs": len(out), "swap_consistency": judged.swap_consistency}
        if not out:
            raise BadInputError(f"epoch {epoch}: the reward model abstains on every pair (tau {self.tau}): lower tau")
        return out, about

    def _corrupt(self, v: PromptModel, p: Product, ask: Ask, key: tuple, rng: random.Random) -> tuple[Ask, str]:
        if rng.random() < 0.5:
            v.add_image(("masked", *key), mask_patches(self.plain[p.id], rng, self.h.mask_share, self.h.mask_patch))
            return Ask(ask.text, ("masked", *key)), "mask"
        other = other_product(p, self.train, rng)
        return Ask(ask.text.replace(p.caption, other.caption, 1), ask.image), "caption"

    def train_epoch(
        self, v: PromptModel, arm: str, epoch: int, samples: list[Sample], optimizer: torch.optim.Optimizer
    ) -> dict[str, float]:
        """One pass over the samples; returns the means over its later half."""
        h, product_centric = self.h, arm == "pcpo"
        reference = self._reference(v, samples, product_centric)
        order = list(range(len(samples)))
        random.Random(f"order/{self.spec.seed}/{epoch}").shuffle(order)
        torch.manual_seed(derive(self.spec.seed, "dropout", epoch))
        steps, curve = math.ceil(len(order) / h.batch), []
        for step in range(steps):
            self.progress.check_interrupted()
            rate = h.lr * min(1, (step + 1) / 4) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            rows = order[step * h.batch : (step + 1) * h.batch]
            point = self._step(v, [samples[i] for i in rows], reference[:, rows], product_centric, optimizer)
            check_loss(point["loss"], f"arm {arm}, epoch {epoch}, step {step}")
            curve.append(point)
            self.progress.log(
                stage="rounds", arm=arm, epoch=epoch, step=step, **{k: round(x, 4) for k, x in point.items()}
            )
        v.model.eval()
        return {k: float(np.mean([p[k] for p in curve[len(curve) // 2 :]])) for k in curve[0]}

    def _step(
        self,
        v: PromptModel,
        batch: list[Sample],
        ref: torch.Tensor,
        product_centric: bool,
        optimizer: torch.optim.Optimizer,
    ) -> dict[str, float]:
        h = self.h
        v.model.train()
        logp, length = self._logps(v, batch, product_centric)
        chosen, rejected = logp[0], logp[1]
        dpo = losses.dpo(chosen, rejected, ref[0], ref[1], h.beta)
        nll = losses.token_nll(chosen, length[0])
        loss = dpo + h.w_nll * nll
        point = {"dpo": dpo.item(), "nll": nll.item()}
        if product_centric:
            pcpo = losses.pcpo(chosen, logp[2], ref[0], ref[2], h.beta_pcpo)
            loss = loss + h.w_pcpo * pcpo
            point |= {"pcpo": pcpo.item(), "corrupted": (logp[2] - ref[2]).mean().item()}
        if h.w_anchor:
            loss = loss + h.w_anchor * losses.anchor(chosen, ref[0], h.beta)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.step()
        moved = {"chosen": (chosen - ref[0]).mean().item(), "rejected": (rejected - ref[1]).mean().item()}
        return {"loss": loss.item(), **point, **moved}

    @staticmethod
    def _logps(v: PromptModel, batch: list[Sample], product_centric: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows: y+|x, y-|x and, product-centric, y+|x~; one forward pass."""
        asks = [s.ask for s in batch] * 2 + ([s.corrupted for s in batch] if product_centric else [])
        answers = (
            [s.chosen for s in batch]
            + [s.rejected for s in batch]
            + ([s.chosen for s in batch] if product_centric else [])
        )
        logp, length = v.token_logps(asks, answers)
        return logp.sum(1).view(-1, len(batch)), length.view(-1, len(batch))

    @torch.no_grad()
    def _reference(self, v: PromptModel, samples: list[Sample], product_centric: bool) -> torch.Tensor:
        """Log-probabilities under epoch 0, once per epoch."""
        v.model.eval()
        with v.model.disable_adapter():
            parts = [self._logps(v, samples[i : i + 32], product_centric)[0] for i in range(0, len(samples), 32)]
        return torch.cat(parts, 1)

    # ---- one arm

    def run_arm(self, arm: str) -> list[dict[str, Any]]:
        """All epochs of an arm; finished ones are read back. Returns their metrics."""
        v = self.adapted()
        parameters = [p for p in v.model.parameters() if p.requires_grad]
        # One optimiser for all epochs: a fresh Adam per epoch kicks the weights while its moments fill.
        optimizer = torch.optim.AdamW(parameters, self.h.lr, betas=(0.9, 0.98), weight_decay=0.0)
        done = self._resume(v, arm, optimizer)
        for epoch in range(len(done) + 1, self.h.epochs + 1):
            start = time.monotonic()
            samples, about = self.samples(v, epoch)
            trained = self.train_epoch(v, arm, epoch, samples, optimizer)
            v.drop_images([s.corrupted.image for s in samples if s.how == "mask"])
            check_finite(v.model, f"arm {arm} after epoch {epoch}")
            figures, texts = self.held_figures(v, epoch)
            metrics = {
                "arm": arm,
                **figures,
                **trained,
                "samples": about,
                "epoch_seconds": round(time.monotonic() - start, 1),
            }
            metrics["gates"] = gates.judge(metrics, self.base_figures, self.h)
            self._keep(v, arm, epoch, metrics, texts, optimizer)
            done.append(metrics)
            self.progress.log(stage="epoch", **{k: x for k, x in metrics.items() if k != "gates"})
        return done

    def folder(self, arm: str, epoch: int) -> Path:
        return self.out / "arms" / arm / f"epoch-{epoch}"

    def _keep(
        self, v: PromptModel, arm: str, epoch: int, metrics: dict, texts: list[str], optimizer: torch.optim.Optimizer
    ) -> None:
        """Writes the epoch's folder and state; both appear whole or not at all."""
        final = self.folder(arm, epoch)
        tmp = final.with_name(f".{final.name}.tmp")
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "no config file in prompt-base": a name, not a folder
            v.model.save_pretrained(tmp)
        (tmp / "README.md").unlink(missing_ok=True)  # PEFT's model card template: says nothing
        # PEFT writes sets in hash order, which differs from process to process, and the digest with it.
        config = json.loads((tmp / "adapter_config.json").read_text())
        config["target_modules"] = sorted(config["target_modules"])
        write_json(tmp / "adapter_config.json", dict(sorted(config.items())))
        state = self.out / "state"
        state.mkdir(exist_ok=True)
        torch.save(optimizer.state_dict(), state / f"{arm}.tmp")
        os.replace(state / f"{arm}.tmp", state / f"{arm}-{epoch}.pt")
        write_json(state / f"{arm}-{epoch}.json", {"metrics": metrics, "texts": texts})
        os.replace(tmp, final)
        (state / f"{arm}-{epoch - 1}.pt").unlink(missing_ok=True)

    def _resume(self, v: PromptModel, arm: str, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
        done: list[dict[str, Any]] = []
        while self.folder(arm, len(done) + 1).is_dir() and len(done) < self.h.epochs:
            done.append(json.loads((self.out / "state" / f"{arm}-{len(done) + 1}.json").read_text())["metrics"])
        if done:
            load_adapter(v, self.folder(arm, len(done)))
            optimizer.load_state_dict(torch.load(self.out / "state" / f"{arm}-{len(done)}.pt", weights_only=True))
            self.progress.log(stage="resumed", arm=arm, epoch=len(done))
        return done

    # ---- results

    def finish(self, arms: dict[str, list[dict[str, Any]]]) -> None:
        """Chooses the epoch to ship; writes adapter/, probe.json, samples.jsonl, metrics.json."""
        main = "pcpo" if "pcpo" in arms else next(iter(arms))
        at, passed = gates.choose(arms[main])
        best = arms[main][at]
        chosen = self.folder(main, best["epoch"])
        shutil.rmtree(self.out / "adapter", ignore_errors=True)
        shutil.copytree(chosen, self.out / "adapter")
        v = self.adapted()
        load_adapter(v, chosen)
        _, asks = self.held_asks()
        candidates = asks[:: self.h.held_samples][: self.h.probes]
        write_json(self.out / "probe.json", probe.make(v, [(a, self.plain[a.image]) for a in candidates]))
        write_lines(self.out / "samples.jsonl", self._all_samples(arms))
        write_json(
            self.out / "metrics.json",
            {
                "kind": "rounds",
                "arm": main,
                "epoch": best["epoch"],
                "passed": passed,
                "gates": best["gates"],
                "adapter_digest": dir_digest(self.out / "adapter"),
                "base": self.base_figures,
                "epochs": [m for arm in arms.values() for m in arm],
            },
        )

    def _all_samples(self, arms: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        rows, _ = self.held_asks()

        def lines(arm: str, epoch: int, texts: list[str]) -> list[dict[str, Any]]:
            return [{"arm": arm, "epoch": epoch, "product": p.id, "text": t} for p, t in zip(rows, texts, strict=True)]

        out = []
        for arm, epochs in arms.items():
            out += lines(arm, 0, self.base_samples)
            for m in epochs:
                kept = json.loads((self.out / "state" / f"{arm}-{m['epoch']}.json").read_text())
                out += lines(arm, m["epoch"], kept["texts"])
        return out


def load_adapter(v: PromptModel, folder: Path) -> None:
    """Puts a saved adapter's weights into the model's own LoRA; keys and shapes must be exactly its."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    saved = load_file(folder / "adapter_model.safetensors")
    own = get_peft_model_state_dict(v.model)
    if {k: x.shape for k, x in saved.items()} != {k: x.shape for k, x in own.items()}:
        raise BadInputError(f"the adapter in {folder} is not of this base and rank: remove the folder to start again")
    set_peft_model_state_dict(v.model, saved)


ARTIFACT = "adapter"


def parents(spec: Spec) -> dict[str, str | None]:
    """Folders that the job was made from, by role."""
    return {"base": spec.base, "reward_model": spec.reward_model, "referee_model": spec.referee_model}


def run(spec: Spec, out: Path, progress: Progress) -> None:
    """The job: see the module's text for what it leaves in out."""
    h: Hyper = hyper(Hyper, spec.hyper)
    names = [a for a in h.arms.split(",") if a]
    if not names or set(names) - {"dpo", "pcpo"}:
        raise BadInputError(f"hyper.arms: {h.arms!r} is not a list of dpo and pcpo")
    _same_job(spec, out)
    with Renderer(spec.renderer) as renderer:
        rounds = Rounds(spec, h, out, renderer, progress)
        rounds.start()
        progress.log(stage="epoch", arm="base", **rounds.base_figures)
        rounds.finish({arm: rounds.run_arm(arm) for arm in names})


def _same_job(spec: Spec, out: Path) -> None:
    """Refuses to continue another job's epochs."""
    told = dataclasses.asdict(spec)
    marker = out / "spec.json"
    if marker.is_file() and (out / "arms").is_dir():
        before = json.loads(marker.read_text())
        changed = [k for k in told if before.get(k) != told[k]]
        if changed:
            raise BadInputError(f"{out} holds epochs of another job ({', '.join(changed)} differ): use a new folder")
    write_json(marker, told)
